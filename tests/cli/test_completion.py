"""Tab completion, as a shell asks for it: commands, groups, options, keys, their values, and paths; nothing else."""

import pytest

from diffuse.cli.main import main


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def offered(line: str, monkeypatch, capsys) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", "abc")  # it is not looked at
    assert main(["-sc", "query=bash"]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("diffuse ", ["train", "sample", "eval", "export", "ls", "diff"]),
        ("diffuse s", ["sample"]),
        ("diffuse train sche", ["schedule=", "schedule."]),
        ("diffuse train schedule=c", ["schedule=cosine"]),
        ("diffuse train -m schedule=linear,c", ["schedule=linear,cosine"]),
        ("diffuse train optim.l", ["optim.lr="]),
        ("diffuse train op", ["optim."]),
        ("diffuse train variance=fix", ["variance=fixed_small", "variance=fixed_large"]),
        ("diffuse train class_conditional=t", ["class_conditional=true"]),
        ("diffuse train unet.scale_shift=", ["unet.scale_shift=true", "unet.scale_shift=false"]),
        ("diffuse train eval.metrics=[fid,k", ["eval.metrics=[fid,kid"]),
        ("diffuse sample sampler=dd", ["sampler=ddim", "sampler=ddpm"]),
        ("diffuse sample sampler=ddim sampler.e", ["sampler.eps_scale=", "sampler.eta="]),
        ("diffuse sample sampler=ddpm sampler.et", []),
        ("diffuse train --mu", ["--multirun"]),
        ("diffuse train hyd", []),
        ("diffuse nonsense a", []),
        ("diffuse train steps=", []),
    ],
)  # fmt: skip
def test_what_a_tab_offers(line, expected, monkeypatch, capsys):
    assert offered(line, monkeypatch, capsys) == expected


def test_every_offer_is_a_name_that_the_command_knows(monkeypatch, capsys):
    for command in ("train", "sample", "eval"):
        words = offered(f"diffuse {command} ", monkeypatch, capsys)
        assert not [word for word in words if word.startswith(("hydra", "_")) or word[-1] not in "=."]
        assert "device=" in words


def test_paths_and_runs_by_their_names(tmp_path, monkeypatch, capsys):
    (tmp_path / "outputs" / "first").mkdir(parents=True)
    (tmp_path / "figures").mkdir()
    assert offered("diffuse sample ckpt=outputs/f", monkeypatch, capsys) == ["ckpt=outputs/first/"]
    assert offered("diffuse sample ckpt=f", monkeypatch, capsys) == ["ckpt=figures/", "ckpt=first"]
    assert offered("diffuse train data_dir=f", monkeypatch, capsys) == ["data_dir=figures/"]
    assert offered("diffuse diff fir", monkeypatch, capsys) == ["first"]


def test_options_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "own" / "schedule").mkdir(parents=True)
    (tmp_path / "own" / "schedule" / "mine.yaml").write_text("_target_: mine.schedule\n")
    assert offered("diffuse train -cd own schedule=m", monkeypatch, capsys) == ["schedule=mine"]


def test_an_unknown_shell_is_said(capsys):
    assert main(["-sc", "install=tcsh"]) == 2
    assert capsys.readouterr().err == "error: install=tcsh: completion knows bash, zsh, fish\n"
