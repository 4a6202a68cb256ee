"""What can go wrong with several processes, in words."""

import platform
import socket
import sys

import pytest
import torch

from tests.support.commands import FAST, TINY, diffuse
from tests.support.forked import Forked
from tests.support.processes import until
from tests.support.together import by_all, environment, free_port, together


def messages(done) -> list[str]:
    return [each.stderr.strip() for each in done]


def test_a_process_that_does_not_come_is_named(tmp_path):
    """Rank 2 of 3 never starts. Where rank 0 itself is missing, the others say where they looked for it."""
    words = ["train", *TINY, "device.wait=3"]
    port = free_port()
    with (
        Forked(words, tmp_path, environment(0, 3, port)) as first,
        Forked(words, tmp_path, environment(1, 3, port)) as second,
    ):
        codes = [process.wait(100) for process in (first, second)]
        said = first.said()[1]
    assert codes == [1, 1]
    assert said == (
        f"error: fewer than 3 processes came to localhost:{port} within 3 s (device.wait): look at the machines of the "
        "others, and at a firewall between them\n"
    )
    with Forked(words, tmp_path, environment(1, 3, port)) as second:
        assert second.wait(100) == 1
        message = second.said()[1].splitlines()[-1]
    assert message == f"error: rank 1: rank 0 of 3 did not answer at localhost:{port} within 3 s (device.wait)"
    assert not (tmp_path / "outputs").exists()


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with Forked(["train", *TINY, "device.wait=3"], tmp_path, environment(0, 2, port)) as first:
            assert first.wait(100) == 1
            said = first.said()[1]
    assert (
        said == f"error: rank 0 of 2 cannot listen at localhost:{port}: that port is taken. Set another MASTER_PORT\n"
    )


def test_a_batch_that_cannot_be_divided_is_refused_with_numbers_that_do(tmp_path):
    first, *others = by_all("train", *TINY, cwd=tmp_path, count=3)
    assert first.returncode == 2
    assert first.stderr == "error: 3 processes cannot divide batch_size=16 into 3 equal parts: batch_size=15 would do\n"
    assert messages(others) == ["", ""]
    first, *_ = by_all("train", *TINY, "parts=3", "batch_size=32", cwd=tmp_path, count=2)
    words = "2 processes, with parts=3, cannot divide batch_size=32 into 6 equal parts: parts=2, 4, 8, 16 would do"
    assert first.stderr == f"error: {words}\n"
    assert not (tmp_path / "outputs").exists()


def test_a_folder_that_machines_do_not_share_is_noticed(tmp_path):
    """As two machines would see it: each has another outputs/."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with together(["train", *TINY, "name=run"], [here, there]) as processes:
        assert [process.wait(100) for process in processes] == [1, 0]
        said = processes[0].said()[1]
    assert said == (
        f"error: rank 1: outputs/run/config.yaml on {platform.node()} is not the file of that name on the machine of "
        "rank 0: put outputs/ on a disk that all machines share, and start all processes in the same folder\n"
    )


def test_a_checkpoint_that_one_machine_lacks_is_noticed(tmp_path, tiny_run):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "run").symlink_to(tiny_run)
    with together(["sample", "ckpt=run", *FAST, f"name={tmp_path.name}"], [here, there]) as processes:
        assert [process.wait(100) for process in processes] == [1, 0]
        assert processes[0].said()[1].startswith("error: rank 1: ckpt=run does not exist")


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_when_one_is_killed(tmp_path, victim):
    words = ["train", *TINY, "steps=100000", "checkpoint.every=100000", "images.every=100000", "name=run"]
    with together(words, [tmp_path] * 2) as processes:
        while not (tmp_path / "outputs" / "run" / "metrics.jsonl").exists():
            assert not until(processes[0], 0.01), processes[0].communicate()
        processes[victim].kill()
        assert processes[1 - victim].wait(100) == 1
        said = processes[1 - victim].said()[1]
    assert "the connection to another process of this command has ended: it failed, or was killed" in said
    assert len(said.splitlines()) == 1


def out_of_memory() -> None:
    """From here on no convolution has the memory that it needs."""

    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    torch.nn.Conv2d.forward = fails  # type: ignore[method-assign]


def broken() -> None:
    """From here on convolutions have a mistake."""
    del torch.nn.Conv2d.forward
    torch.nn.Conv2d.forward = None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("failure", "lines"),
    [
        (out_of_memory, ["error: rank 1: batch_size=16 in 2 parts does not fit into the memory of cpu"]),
        (broken, ["TypeError: 'NoneType' object is not callable", "error: this is a mistake in diffuse"]),
    ],
)
def test_a_process_that_fails_in_a_step_says_why(tmp_path, failure, lines):
    """Out of memory, or a mistake of ours, in one process alone; the others say that they lost it."""
    port = free_port()
    with (
        Forked(["train", *TINY], tmp_path, environment(0, 2, port)) as first,
        Forked(["train", *TINY], tmp_path, environment(1, 2, port), failure) as second,
    ):
        assert [process.wait(100) for process in (first, second)] == [1, 1]
        said, lost = second.said()[1], first.said()[1]
    assert all(line in said for line in lines), said
    assert lost.startswith("error: the connection to another process of this command has ended")


def test_a_sweep_is_not_started_by_each_process(tmp_path):
    for each in by_all("train", *TINY, "-m", "seed=0,1", cwd=tmp_path, count=2):
        assert each.returncode == 2
        assert each.stderr.endswith("a sweep is started once, without torchrun: -m with device.processes=N\n")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("device.processes=0", "device.processes must be a number, all (one for each GPU) or null, not 0"),
        ("device.processes=few", "device.processes must be a number, all (one for each GPU) or null, not few"),
        ("device.processes=all", "device.processes=all is one for each GPU, and there is none here: give a number"),
    ],
)
def test_numbers_of_processes_that_cannot_be_are_refused(tmp_path, word, message):
    done = diffuse("train", *TINY, word, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.stderr == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_more_processes_than_gpus_are_refused(tmp_path):
    """Where torch finds two GPUs."""
    program = (
        "import sys, torch; torch.cuda.is_available = lambda: True; torch.cuda.device_count = lambda: 2\n"
        "from diffuse.system.joining import processes_to_start\n"
        "for asked in (2, 'all', 8):\n    print(processes_to_start({'kind': 'auto', 'processes': asked}))"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout == "2\n2\n"
    assert "UserError: device.processes=8 needs as many GPUs, and there are 2: set device.processes=all" in done.stderr
