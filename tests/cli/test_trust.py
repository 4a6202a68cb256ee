"""Whose code is run: this package's own, and that of packages which the user trusts on this command line."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from diffuse.options.build import locate
from diffuse.options.trust import foundations
from diffuse.runs.record import read_record
from diffuse.runs.trained import load
from diffuse.system.errors import UserError
from tests.support.commands import TINY, diffuse

# A module that leaves a file behind when it is imported, which counts as running it.
CODE = """
from pathlib import Path
import torch
from diffuse import TableSchedule

Path("ran").touch()

def constant(levels: int = 1000) -> TableSchedule:
    return TableSchedule(torch.full([levels], 0.01, dtype=torch.float64))
"""


def stranger(folder: Path, target: str, trust: str) -> Path:
    """A finished run whose config.yaml says that its schedule is of another package, and that this is trusted."""
    (folder / "mine.py").write_text(CODE)
    assert diffuse("train", *TINY, "name=stranger", cwd=folder).returncode == 0
    record = folder / "outputs" / "stranger" / "config.yaml"
    text = re.sub(r"schedule:\n( +.*\n)+", f"schedule:\n  _target_: {target}\n  levels: 1000\n", record.read_text())
    assert "trust: []" in text
    record.write_text(text.replace("trust: []", f"trust: [{trust}]"))
    return record


@pytest.mark.parametrize("more", [[], ["steps=7"], ["--cfg", "job"], ["trust=[other]"]], ids=" ".join)
def test_a_run_that_trusts_itself_is_not_trusted(tmp_path, more):
    stranger(tmp_path, "mine.constant", "mine")
    done = diffuse("train", "resume=outputs/stranger", *more, cwd=tmp_path, PYTHONPATH=".")
    if "--cfg" not in more:
        assert done.returncode == 1
        assert "schedule._target_ is mine.constant" in done.stderr
        assert "add trust=[mine]" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_what_is_trusted_here_is_run_and_named_in_every_advice(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "own/schedule").mkdir(parents=True)
    (tmp_path / "own/schedule/constant.yaml").write_text("_target_: mine.constant\nlevels: 1000\n")
    words = [*TINY, "name=a", "-cd", "own", "schedule=constant", "trust=[mine]", "max_hours=1e-9"]
    done = diffuse("train", *words, cwd=tmp_path, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    advice = re.search(r"continue with: diffuse (.*)", done.stdout)
    assert advice, done.stdout
    done = diffuse(*shlex.split(advice[1]), "max_hours=null", cwd=tmp_path, PYTHONPATH=".")
    assert "next: diffuse sample ckpt=outputs/a 'trust=[mine]' " in done.stdout, done.stderr


def test_a_checkpoint_that_trusts_itself_is_not_trusted(tiny_run, tmp_path):
    stored = load(str(tiny_run)).config
    stored.schedule["_target_"], stored.trust = "mine.constant", ["mine"]
    with pytest.raises(UserError, match=r"add trust=\[mine\]"):
        locate(stored.schedule, "schedule")


@pytest.mark.parametrize("package", ["hydra", "torch", "torchvision", "numpy", "os", "subprocess", "antlr4", "diffuse"])
def test_what_the_program_is_built_on_is_never_trusted(package):
    """In all of them there is something that runs whatever a file or a string says."""
    with pytest.raises(UserError, match="trust= is for packages of your own|is not a class or function defined in"):
        locate({"_target_": f"{package}.anything"}, "schedule", [package])


def test_the_packages_of_others_are_not_the_programs():
    assert {"torch_fidelity", "PIL", "yaml", "sympy", "scipy"} <= foundations()
    assert not {"mine", "pip", "timm"} & foundations()


def test_code_of_a_dependency_is_not_run_by_resuming(tmp_path):
    """Hydra's utilities call anything: torch.load without weights_only, on a pickle beside the config."""
    torch.save({"a": 1}, tmp_path / "pickle.pt")
    stranger(tmp_path, "hydra.utils.call", "hydra")
    for trust in ([], ["trust=[hydra]"]):
        done = diffuse("train", "resume=outputs/stranger", *trust, cwd=tmp_path)
        assert done.returncode == 1
        assert "hydra" in done.stderr
        assert len(done.stderr.splitlines()) <= 4


def test_a_stored_config_has_values_only(tmp_path):
    """An interpolation would be resolved with the environment of the user who resumes, and be written down."""
    record = stranger(tmp_path, "linear", "")
    record.write_text(record.read_text().replace("name: stranger", "name: ${oc.env:HOME}"))
    with pytest.raises(UserError, match="name holds an interpolation"):
        read_record(record.parent)
