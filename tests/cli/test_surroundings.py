"""Odd surroundings, and values without bounds: words in place of a traceback or a hang."""

import errno
import fcntl
import io
import os
import shutil
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from diffuse.cli.messages import as_user_error, package_of_the_users
from diffuse.sweeps.folder import Sweep
from diffuse.system.errors import Terminated, UserError
from diffuse.system.files import hold_lock
from diffuse.system.signals import AtOnce, handle_signals, raise_pending
from tests.support.commands import TINY, diffuse
from tests.support.making import save_all


def error_of(*words: str, cwd: Path, code: int = 2, **environment: str) -> str:
    done = diffuse(*words, cwd=cwd, timeout=100, **environment)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 4, done.stderr
    return done.stderr


def test_brackets_without_end(tmp_path):
    word = "unet.attention=" + "[" * 2000 + "]" * 2000
    assert "nested too deeply" in error_of("train", word, cwd=tmp_path)


def test_more_levels_than_memory(tmp_path):
    assert "schedule.levels must be between 1 and 1000000" in error_of(
        "train", *TINY, "schedule.levels=1000000000", cwd=tmp_path
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_more_than_memory(error):
    assert "not enough memory: lower batch_size" in str(as_user_error(error, "train"))


def test_a_user_that_does_not_exist(tmp_path):
    assert "~ stands for no folder here" in error_of("train", "resume=~nosuchuser/x", cwd=tmp_path, code=1)


def test_no_folder_for_temporary_files():
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert "set TMPDIR" in str(as_user_error(error, "train"))


def test_a_config_path_relative_to_the_user(tmp_path):
    assert "-cd FOLDER adds options" in error_of("train", "-cp", "nowhere", cwd=tmp_path)


def close(number: int, name: str) -> None:
    os.close(number)
    setattr(sys, name, None)


@pytest.mark.parametrize(("number", "name"), [(1, "stdout"), (2, "stderr")])
def test_a_stream_that_is_closed(tmp_path, number, name):
    """`2>&-`: Python has None for it."""
    from tests.support.forked import Forked

    words = ["train", *TINY, "name=a"]
    with Forked(words, tmp_path, dict(os.environ), partial(close, number, name)) as process:
        _, complaint = process.communicate(100)
        assert process.returncode == 0, complaint
    assert (tmp_path / "outputs/a/checkpoints/last.pt").exists()


def remove_current() -> None:
    shutil.rmtree(Path.cwd())


def test_a_current_folder_that_was_removed(tmp_path):
    from tests.support.forked import Forked

    (tmp_path / "gone").mkdir()
    with Forked(["train", *TINY], tmp_path / "gone", dict(os.environ), remove_current) as process:
        _, complaint = process.communicate(100)
        assert process.returncode == 1
    assert complaint == "error: the current folder was removed: change to one that exists\n"


def test_a_pipe_among_the_images(tmp_path):
    save_all(tmp_path / "photos", "a.png", "b.png", "c.png")
    os.mkfifo(tmp_path / "photos" / "x.png")
    words = ["dataset=folder", "dataset.path=photos", "dataset.size=4", "data_dir=d", "unet.attention=[]"]
    assert "x.png (is not a regular file)" in error_of("train", *TINY, *words, cwd=tmp_path, code=1)


def test_a_header_that_lies(tmp_path):
    held = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8, 1)}
    np.lib.format.write_array_header_1_0(held, header)
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("arr_0.npy", held.getvalue() + bytes(640))
    words = ["dataset=npz", "dataset.path=lie.npz", "data_dir=d"]
    message = error_of("train", *TINY, *words, cwd=tmp_path, code=1)
    assert "arr_0 says that it has 1,000,000,000,000 images, and 640 bytes follow" in message


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))


def test_aliases_that_explode(tmp_path):
    (tmp_path / "outputs/x").mkdir(parents=True)
    (tmp_path / "outputs/x/config.yaml").write_text(BOMB)
    assert "it has aliases" in error_of("train", "resume=outputs/x", cwd=tmp_path, code=1)
    (tmp_path / "outputs/s").mkdir()
    (tmp_path / "outputs/s/multirun.yaml").write_text(BOMB)
    assert "it has aliases" in error_of("train", "-m", "name=s", "seed=1,2", cwd=tmp_path)


def test_aliases_that_explode_among_options_of_ones_own(tmp_path):
    (tmp_path / "own/schedule").mkdir(parents=True)
    (tmp_path / "own/schedule/bomb.yaml").write_text(BOMB)
    assert "its aliases (*name) stand for more than 1,000,000 values" in error_of(
        "train", "-cd", "own", "schedule=bomb", cwd=tmp_path
    )
    (tmp_path / "own/schedule/bomb.yaml").write_text("_target_: cosine\nlevels: &n 100\ns: 0.008\nmax_beta: 0.999\n")
    (tmp_path / "own/schedule/other.yaml").write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    done = diffuse("train", "-cd", "own", "schedule=bomb", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_mistake_in_a_package_of_the_users_is_theirs(tmp_path):
    (tmp_path / "mine.py").write_text("def boom(levels: int = 1000):\n    raise RuntimeError('inside')\n")
    (tmp_path / "own/schedule").mkdir(parents=True)
    (tmp_path / "own/schedule/boom.yaml").write_text("_target_: mine.boom\nlevels: 10\n")
    words = ["train", *TINY, "-cd", "own", "schedule=boom", "trust=[mine]"]
    done = diffuse(*words, cwd=tmp_path, PYTHONPATH=".")
    assert done.returncode == 1
    assert "RuntimeError: inside" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: this is a mistake in mine, a package of your own"


@pytest.mark.parametrize(("name", "expected"), [("mine.inside", "mine"), ("diffuse.runs.x", None), ("numpy.x", None)])
def test_whose_a_mistake_is(name, expected):
    """That of the innermost module that is not ours or below us, here one that calls numpy."""
    with pytest.raises(ValueError) as raised:
        exec("import numpy; numpy.zeros(3).reshape(7)", {"__name__": name})
    assert package_of_the_users(raised.value) == expected


# Locks.


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_to_with_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_lock(tmp_path / ".lock", refusal="in use"):
        pass
    with hold_lock(tmp_path / ".lock"):
        pass
    assert "its file system has no locks" in caplog.text
    Sweep(tmp_path / "s").join()


def test_a_lock_of_another_is_a_lock(tmp_path):
    with (
        FileLock(tmp_path / ".lock").acquire(timeout=0),
        pytest.raises(UserError, match="in use"),
        hold_lock(tmp_path / ".lock", refusal="in use"),
    ):
        pass


# Signals.


def test_a_signal_waits_for_the_end_of_an_import(tmp_path, monkeypatch):
    """A library that is loaded by half may crash; the signal is not forgotten."""
    program = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nfinished = True\n"
    (tmp_path / "asked_to_end.py").write_text(program)
    monkeypatch.syspath_prepend(str(tmp_path))
    with handle_signals(AtOnce()):
        import asked_to_end  # type: ignore[import-not-found]

        assert asked_to_end.finished
        with pytest.raises(Terminated):
            raise_pending()


def test_a_signal_elsewhere_does_not_wait():
    with pytest.raises(Terminated), handle_signals(AtOnce()):
        os.kill(os.getpid(), 15)
        raise AssertionError("it went on")
