"""Places that may only be read, as another user of the machine finds them; and a user without a home."""

import ctypes
import os
import shutil
from pathlib import Path

import pytest

from diffuse.scoring import feature_classifier
from diffuse.system.files import hold_lock
from tests.support.commands import FAST
from tests.support.forked import Forked

ALL = 2**32 - 1
KEEP_CAPABILITIES, VERSION_3 = 8, 0x20080522  # of prctl, and of capset


def set_capabilities(bits: int) -> None:
    """Linux: without its capabilities, root may write no more than a file's mode allows."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)(*[bits, bits, 0] * 2)
    if os.geteuid() == 0 or bits:
        assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


def become_a_reader() -> None:
    """Someone who may write only where files say so, and trains classifiers of a few steps."""
    set_capabilities(0)
    feature_classifier.STEPS = 5


def become_a_user_without_a_name() -> None:
    """A user whose number stands in no list, who may read everything."""
    libc = ctypes.CDLL(None)
    libc.prctl(KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setuid(54321)
    set_capabilities(0b111)  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@pytest.fixture
def shared(tiny_run, tmp_path) -> Path:
    """A folder with a run and a data_dir that may only be read, and `mine`, where one may write."""
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "run", tmp_path / "data", *(tmp_path / "run").rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    return tmp_path


def reading(shared: Path, *words: str) -> tuple[int | None, str, str]:
    """A command of someone who may write into `mine` only, and has it as home."""
    environment = {**os.environ, "HOME": str(shared / "mine")}
    with Forked([*words], shared / "mine", environment, become_a_reader) as process:
        said, complaint = process.communicate(timeout=200)
    assert "Traceback" not in complaint, complaint
    return process.returncode, said, complaint


def test_a_run_of_others_is_sampled_into_ones_own_outputs(shared):
    before = {path: path.stat().st_mtime_ns for path in (shared / "run").rglob("*")}
    code, said, complaint = reading(shared, "sample", "ckpt=../run", "n=2", "sampler.steps=2", "name=s", *FAST)
    assert code == 0, complaint
    assert "may only be read: what is made goes into outputs/run" in said
    assert (shared / "mine" / "outputs" / "run" / "samples" / "s" / "samples.npz").exists()
    assert (shared / "mine" / "outputs" / "run" / "history.jsonl").exists()
    assert {path: path.stat().st_mtime_ns for path in (shared / "run").rglob("*")} == before


def test_features_of_a_data_dir_of_others_are_kept_in_ones_own(shared):
    words = ["eval", "ckpt=../run", "n=20", "sampler.steps=2", "metrics=[fid]", "features=classifier", *FAST]
    code, said, complaint = reading(shared, *words, f"data_dir={shared / 'data'}", "name=e")
    assert code == 0, complaint
    assert "may only be read: the features of digits:train are kept in" in said
    assert list((shared / "mine" / ".cache" / "diffuse" / "features").iterdir())
    assert not list((shared / "data").iterdir())


def test_training_where_one_may_not_write_says_where_else(shared):
    folder = shared / "run" / "checkpoints"
    folder.chmod(0o755)
    for path in folder.glob("step_00000030.pt"):  # so that the run is not finished
        path.unlink()
    folder.chmod(0o555)
    code, _, complaint = reading(shared, "train", f"resume={shared / 'run'}")
    assert code == 1
    assert f"cannot write or read {shared / 'run'}" in complaint
    assert len(complaint.splitlines()) <= 4


def test_a_history_that_is_anothers_is_no_reason_to_draw_nothing(shared):
    for path in (shared / "run", *(shared / "run").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o444)
    code, _, complaint = reading(shared, "sample", "ckpt=../run", "n=1", "sampler.steps=2", "name=s", *FAST)
    assert code == 0, complaint
    assert "history.jsonl has no line about this command: Permission denied" in complaint


def test_a_run_of_others_is_running_while_they_hold_its_lock(shared):
    with hold_lock(shared / "run" / ".lock"):
        _, said, _ = reading(shared, "ls", str(shared))
    assert " running " in said


def test_listing_runs_of_others(shared):
    code, said, complaint = reading(shared, "ls", str(shared))
    assert code == 0, complaint
    assert "finished" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a name")
def test_without_a_home_and_a_name(shared):
    """As in a container: HOME is unset, and the user's number stands in no list."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    words = ["sample", "ckpt=../run", "n=1", "sampler.steps=2", "name=h", *FAST]
    with Forked(words, shared / "mine", environment, become_a_user_without_a_name) as process:
        _, complaint = process.communicate(timeout=200)
    assert (process.returncode, complaint) == (0, "")
    words = ["train", "resume=~/nothing"]
    with Forked(words, shared / "mine", environment, become_a_user_without_a_name) as process:
        _, complaint = process.communicate(timeout=200)
    assert process.returncode == 1
    assert complaint == "error: ~ stands for no folder here (no HOME, or no such user): write the path without it\n"
