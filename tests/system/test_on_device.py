"""What must hold on a CUDA device, the page that `make gpu` writes, and the compiler on a CPU."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.commands import TINY, config
from tests.support.device_checks import CHECKS, Place, losses_of, near, trainer_of
from tests.support.running import trainer_of as typed_trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_cuda(name):
    CHECKS[name](Place("cuda"))


@pytest.mark.parametrize("name", ["norms", "dropout", "network", "failing"])
def test_what_is_checked_holds_on_the_cpu(name):
    CHECKS[name](Place("cpu"))


def test_a_check_can_fail():
    with pytest.raises(AssertionError, match="off by 0.5, more than 0.1"):
        near([1.0, 1.5], [1.0, 1.0], 0.1)
    torch.manual_seed(0)
    plain, other = losses_of(trainer_of(Place("cpu")), 3), losses_of(trainer_of(Place("cpu"), "seed=1"), 3)
    with pytest.raises(AssertionError):
        near(other, plain, 2e-2)


@pytest.mark.slow  # a minute; the continuous integration does it too
def test_the_rehearsal_ends_in_a_page(tmp_path):
    line = [sys.executable, "scripts/gpu.py", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "the-CPU-rehearsed.md").read_text()
    facts = json.loads((tmp_path / "the-CPU-rehearsed.json").read_text())
    assert set(facts["checks"]) == set(CHECKS)
    assert not facts["failed"]
    assert not facts["left_out"]
    for words in ("training, rehearsed", "drawing, rehearsed", "A step by kind of kernel", "| convolutions |"):
        assert words in page


def test_without_a_device_it_says_how_to_rehearse():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = subprocess.run([sys.executable, "scripts/gpu.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: torch finds no CUDA device here; --rehearse tries everything on the CPU\n"


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("norm", ["torch", "moments"])
def test_a_compiled_step_is_the_step(norm, tmp_path, monkeypatch):
    """Losses and weights of five steps, with dropout, in float32."""
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "unet.dropout=0.2", "device.precision=float32", "optim.lr=1e-3"]
    plain = typed_trainer(config("train", *words))
    compiled = typed_trainer(config("train", *words, "device.compile=true", f"device.norm={norm}"))
    for _ in range(5):
        plain.advance()
        compiled.advance()
    assert compiled.report() == pytest.approx(plain.report(), rel=1e-4)
    for one, other in zip(plain.net.parameters(), compiled.net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)
