"""Checkpoints that are damaged, foreign or malicious are refused in words; nothing in them runs."""

import errno
import hashlib
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuse.runs.checkpoint import Damaged, find, save, verify, write
from diffuse.runs.checkpoint_files import all_in, step_of
from diffuse.runs.trained import load
from diffuse.system.errors import UserError
from tests.support.comparing import read


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def newest(tiny_run) -> Path:
    return tiny_run / "checkpoints" / "last.pt"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) <= 4
    return message


def test_a_pickle_with_code_is_refused_without_running_it(tmp_path):
    marker = tmp_path / "it ran"
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(marker)))
    torch.save({"format": 2, "config": Malicious(marker)}, tmp_path / "zipped.pt")
    write(tmp_path / "sealed.pt", 1, {"config": Malicious(marker)})
    for name in ("plain.pt", "zipped.pt"):
        assert "is not a checkpoint of this program" in refusal(tmp_path / name)
    assert "holds code that loading would run" in refusal(tmp_path / "sealed.pt")
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_called_damaged(newest, tmp_path, share):
    whole = newest.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * share)])
    refusal(tmp_path / "cut.pt")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"hello", b"PK\x03\x04 and more", bytes(1000)])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "other.pt").write_bytes(content)
    refusal(tmp_path / "other.pt")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, torch.zeros(3)])
def test_somebody_elses_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    assert "is not a checkpoint of this program" in refusal(tmp_path / "other.pt")
    write(tmp_path / "sealed.pt", 1, {"state_dict": {}})
    assert "is not a checkpoint of this program" in refusal(tmp_path / "sealed.pt")


def test_the_seal_is_the_hash_of_all_before_it(newest):
    content = newest.read_bytes()
    assert content[-64:].decode() == hashlib.sha256(content[:-64]).hexdigest()
    assert verify(newest) == hashlib.sha256(content).hexdigest()
    with zipfile.ZipFile(newest) as archive:
        assert archive.comment == content[-64:]
        assert archive.testzip() is None


def test_one_changed_bit_anywhere_is_seen(newest, tmp_path):
    whole = newest.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        (tmp_path / "bit.pt").write_bytes(damaged)
        with pytest.raises(Damaged):
            read(tmp_path / "bit.pt")


def test_another_format_is_named(newest, tmp_path):
    write(tmp_path / "new.pt", 1, {**read(newest), "format": 99})
    assert "has format 99, and diffuse" in refusal(tmp_path / "new.pt")
    write(tmp_path / "old.pt", 1, {**read(newest), "format": 1})
    assert "has format 1, and diffuse" in refusal(tmp_path / "old.pt")


def changed(newest: Path, tmp_path: Path, **config) -> Path:
    """A copy of the checkpoint in whose config some groups differ."""
    content = read(newest)
    content["config"] = {**content["config"], **config}
    write(tmp_path / "changed.pt", 1, content)
    return tmp_path / "changed.pt"


@pytest.mark.parametrize("target", ["os.system", "pathlib.Path", "diffuse.system.files.slug", "shutil.rmtree"])
def test_a_config_that_names_other_code_is_refused(newest, tmp_path, target):
    """A checkpoint from a stranger could name any function for us to call."""
    path = changed(newest, tmp_path, schedule={"_target_": target, "path": "x"})
    with pytest.raises(
        UserError, match="not part of diffuse|not a class or function defined in diffuse.mathematics.tables"
    ):
        load(str(path))


def test_what_does_not_fit_together_is_said(newest, tmp_path):
    content = read(newest)
    wider = {**content["config"]["unet"], "channels": 16}
    with pytest.raises(UserError, match="does not fit together"):
        load(str(changed(newest, tmp_path, unet=wider)))
    with pytest.raises(UserError, match="does not fit together"):
        broken = {key: value for key, value in content.items() if key != "ema"}
        write(tmp_path / "broken.pt", 1, broken)
        load(str(tmp_path / "broken.pt"))


def test_every_way_to_name_a_checkpoint_finds_it(tiny_run, newest):
    expected = (newest.parent / "step_00000030.pt").resolve()
    for way in (tiny_run, tiny_run / "checkpoints", newest, tiny_run / "checkpoints" / "step_00000030.pt"):
        assert find(str(way)).path == expected


def test_without_the_link_the_newest_is_found(tmp_path):
    for step in (5, 40, 300):
        save(tmp_path / "run" / "checkpoints", step, {"config": {}}, keep=9)
    (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
    assert find(str(tmp_path / "run")).path.name == "step_00000300.pt"


def test_last_pt_can_be_copied_alone(tmp_path):
    """With `cp -r`, which copies a symbolic link as a link."""
    save(tmp_path / "run", 5, {"config": {}}, keep=1)
    last = save(tmp_path / "run", 40, {"config": {}}, keep=1)
    subprocess.run(["cp", "-r", tmp_path / "run" / "last.pt", tmp_path / "kept.pt"], check=True)
    shutil.rmtree(tmp_path / "run")
    assert find(str(tmp_path / "kept.pt")).content["step"] == 40
    assert last.name == "step_00000040.pt"


def test_a_run_of_which_only_last_pt_was_copied(tmp_path):
    save(tmp_path / "run" / "checkpoints", 40, {"config": {}}, keep=1)
    (tmp_path / "run" / "checkpoints" / "step_00000040.pt").unlink()
    assert find(str(tmp_path / "run")).content["step"] == 40


def test_where_there_are_no_hard_links_last_pt_is_a_symbolic_one(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as FAT has it

    monkeypatch.setattr(os, "link", refuse)
    newest = save(tmp_path / "run", 40, {"config": {}}, keep=1)
    assert (tmp_path / "run" / "last.pt").readlink() == Path(newest.name)
    (tmp_path / "copy.pt").symlink_to("step_00000040.pt")
    with pytest.raises(UserError, match="is a link to step_00000040.pt, which is not there: copy that file"):
        find(str(tmp_path / "copy.pt"))


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog):
    folder = tmp_path / "run" / "checkpoints"
    for step in (5, 40, 300):
        save(folder, step, {"config": {}}, keep=9)
    with open(folder / "step_00000300.pt", "rb+") as file:
        file.seek(200)
        file.write(b"?")
    found = find(str(tmp_path / "run"))
    assert (found.path.name, found.content["step"]) == ("step_00000040.pt", 40)
    assert "step_00000300.pt is damaged" in caplog.text
    assert "taking step_00000040.pt" in caplog.text


def test_where_all_are_damaged_nothing_begins_again(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    for step in (5, 40):
        save(folder, step, {"config": {}}, keep=9).write_bytes(b"")
    with pytest.raises(Damaged, match="none of the 2 checkpoints in .* can be read"):
        find(str(tmp_path / "run"))


def test_milestones_stay_and_are_not_counted(tmp_path):
    for step in range(5, 65, 5):
        save(tmp_path, step, {"config": {}}, keep=2, milestone_every=20)
    assert [step_of(path) for path in all_in(tmp_path)] == [20, 40, 50, 55, 60]
    assert (tmp_path / "last.pt").samefile(tmp_path / "step_00000060.milestone.pt")
    for step in (65, 70, 75):
        save(tmp_path, step, {"config": {}}, keep=2)
    assert [step_of(path) for path in all_in(tmp_path)] == [20, 40, 60, 70, 75]


def test_fewer_than_keep_are_all_kept(tmp_path):
    for step in (1, 2):
        save(tmp_path, step, {"config": {}}, keep=3)
    assert [step_of(path) for path in all_in(tmp_path)] == [1, 2]


def test_a_link_to_nothing_is_no_checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    save(folder, 5, {"config": {}}, keep=9)
    (folder / "step_00000009.pt").symlink_to("gone")
    assert find(str(tmp_path / "run")).content["step"] == 5


def test_what_is_not_there_is_said(tmp_path, tiny_run):
    with pytest.raises(UserError, match="nowhere does not exist; give a run folder or a checkpoint file"):
        find(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is a folder without checkpoints"):
        find(str(tmp_path))
    with pytest.raises(UserError, match="It holds runs, though: .*tiny"):
        find(str(tiny_run.parent))
