"""Commands in processes that are forked from one in which torch and Hydra are loaded already.

Loading them takes four seconds, which every command would spend again. The process has its own arguments, folder,
environment, streams and exit code, as one that a shell starts.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Self

from tests.support.places import REPOSITORY

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.support.loaded"])


class Forked:
    """`diffuse WORDS` in a new process: the part of subprocess.Popen that the tests use. What it says goes to files."""

    def __init__(
        self, words: list[str], cwd: Path, environment: dict[str, str], first: Callable[[], object] | None = None
    ):
        """`first` is called in the new process before all else."""
        start_server()
        self.words, self._folder = words, tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self._process = SERVER.Process(target=_child, args=(words, cwd, environment, self._streams, first))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.words, timeout)
        return self.returncode

    def said(self) -> tuple[str, str]:
        """What it has written so far to the standard output and the standard error."""
        out, err = (p.read_text(encoding="utf-8", errors="replace") if p.exists() else "" for p in self._streams)
        return out, err

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.said()

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error:
            self.kill()
        self.wait()
        self._folder.cleanup()


def start_server() -> None:
    """Start the process that the others are forked from, in the folder where it finds `tests`."""
    here = Path.cwd()
    os.chdir(REPOSITORY)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(here)


def run(words: list[str], cwd: Path, environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """`diffuse WORDS` in a new process, to its end."""
    with Forked(words, cwd, environment) as process:
        out, err = process.communicate(timeout)
        return subprocess.CompletedProcess(words, process.returncode, out, err)


def _child(
    words: list[str],
    cwd: Path,
    environment: dict[str, str],
    streams: list[Path],
    first: Callable[[], object] | None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if first:
        first()
    sys.path[:0] = [str(cwd / place) for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.argv = ["diffuse", *words]
    from diffuse.cli.main import main

    sys.exit(main())
