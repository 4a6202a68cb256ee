"""The README is short, its Python example trains and goes on, and its new sampler is a whole change."""

import re
import shutil
import subprocess
import sys

import torch

from tests.support.places import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return found


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) <= 160
    assert len([line for line in block("python").splitlines() if line]) <= 25


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert link.startswith("https://") or (REPOSITORY / link).exists(), link


def test_the_python_example_trains_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    example = block("python").replace("% 250", "% 2").replace("schedule, 50", "schedule, 3")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    ends = []
    for steps, reported in ((4, "2 4"), (6, "6")):
        names: dict = {}
        exec(example.replace("< 1000", f"< {steps}"), names)
        assert " ".join(line.split()[0] for line in capsys.readouterr().out.splitlines()) == reported
        assert names["images"].shape == (64, 1, 8, 8)
        assert names["images"].abs().max() <= 1
        assert (tmp_path / "digits.png").stat().st_size > 1000
        ends.append(names["trainer"].net.state_dict())
    (tmp_path / "digits.pt").unlink()
    torch.manual_seed(0)  # of the network's initial weights; the steps have their own
    exec(example.replace("< 1000", "< 6"), names)
    whole = names["trainer"].net.state_dict()
    assert all(torch.equal(ends[1][name], whole[name]) for name in whole)


def test_the_new_sampler_is_a_whole_change(tmp_path):
    """Its files, put into a copy of the project, pass the test of the order that it declares, and its name is known."""
    for folder in ("diffuse", "configs", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    files = re.findall(r"--- /dev/null\n\+\+\+ b/(\S+)\n@@ .* @@\n((?:\+.*\n)+)", block("diff"))
    assert [name for name, _ in files] == ["configs/sampler/adams.yaml", "diffuse/mathematics/samplers/adams.py"]
    for name, lines in files:
        (tmp_path / name).write_text(re.sub("^[+]", "", lines, flags=re.MULTILINE))
    words = ["pytest", "-q", "-p", "no:cacheprovider", "tests/mathematics/test_sampler_orders.py", "-k", "adams"]
    tests = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
    assert re.search(r"^[1-9]\d passed", tests.stdout, re.MULTILINE), tests.stdout
    words = ["diffuse", "train", "sampler=adams", "--cfg", "job", "-p", "sampler"]
    shown = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
    assert "_target_: adams" in shown.stdout, shown.stderr
