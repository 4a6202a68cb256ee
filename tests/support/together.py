"""Commands in several processes that know each other by torchrun's environment, without torchrun's own seconds."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from diffuse.system import joining
from tests.support.commands import WIDE
from tests.support.forked import SERVER, Forked, start_server


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {**os.environ, **WIDE, **{key: str(value) for key, value in place.items()}, "MASTER_ADDR": "localhost"}


@contextmanager
def together(words: Sequence[str], folders: Sequence[Path]) -> Iterator[list[Forked]]:
    """`diffuse WORDS` in as many processes as folders, each in its own."""
    port = free_port()
    with ExitStack() as stack:
        yield [
            stack.enter_context(Forked([*words], folder, environment(rank, len(folders), port)))
            for rank, folder in enumerate(folders)
        ]


def by_all(*words: str, cwd: Path, count: int, timeout: float = 200) -> list[subprocess.CompletedProcess[str]]:
    """The same to their end, in one folder: the result of each process."""
    with together(words, [cwd] * count) as processes:
        said = [process.communicate(timeout) for process in processes]
        return [
            subprocess.CompletedProcess([*words], process.returncode, out, err)
            for process, (out, err) in zip(processes, said, strict=True)
        ]


def by(count: int, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The result of the process that leads, after all have ended well."""
    first, *others = by_all(*words, cwd=cwd, count=count)
    assert first.returncode == 0, first.stderr
    assert all((other.returncode, other.stdout, other.stderr) == (0, "", "") for other in others), others
    return first


def called_by_all(function: Callable[[], Any], count: int, local_count: int | None = None) -> list[Any]:
    """function() in `count` processes that know each other, local_count of them on each of several machines."""
    start_server()
    port, results = free_port(), SERVER.Queue()
    started = []
    for rank in range(count):
        place = environment(rank, count, port)
        if local_count:
            place |= {"LOCAL_RANK": str(rank % local_count), "LOCAL_WORLD_SIZE": str(local_count)}
        started.append(SERVER.Process(target=_call, args=(function, rank, place, results)))
        started[-1].start()
    found = dict(results.get(timeout=100) for _ in started)
    for process in started:
        process.join(100)
    return [found[rank] for rank in range(count)]


def _call(function: Callable[[], Any], rank: int, place: dict[str, str], results: Any) -> None:
    os.environ.update(place)
    torch.set_num_threads(1)
    try:
        found = function()
    except Exception as error:
        found = error
    results.put((rank, found))
    joining.leave()
