"""Commands in processes that are forked from one in which torch and Hydra are loaded already.

Loading them takes four seconds, which every command would spend again. The process has its own arguments, folder,
environment, streams and exit code, as one that a shell starts.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

from tests.support.places import REPOSITORY

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.support.loaded"])


def start_server() -> None:
    """Start the process that the others are forked from, in the folder where it finds `tests`."""
    here = Path.cwd()
    os.chdir(REPOSITORY)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(here)


def run(words: list[str], cwd: Path, environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """`diffuse WORDS` in a new process."""
    start_server()
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_child, args=(words, cwd, environment, streams))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in streams)
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _child(words: list[str], cwd: Path, environment: dict[str, str], streams: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["diffuse", *words]
    from diffuse.cli.main import main

    sys.exit(main())
