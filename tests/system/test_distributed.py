"""What processes send each other: sums in a known order, tasks and their results, errors with their rank."""

import os

import numpy as np
import pytest
import torch

from diffuse.system.errors import UserError
from diffuse.system.joining import join
from diffuse.system.pairwise import first_half, pairwise_sum
from diffuse.system.ranks import launch, rank_here, started
from tests.support.commands import output
from tests.support.together import called_by_all


def numbers(rank: int) -> torch.Tensor:
    """Numbers of very different sizes, so that the order of a sum shows."""
    random = np.random.default_rng(rank)
    return torch.from_numpy((random.standard_normal(1001) * 10 ** random.uniform(-6, 6, 1001)).astype(np.float32))


def test_a_pairwise_sum_does_not_depend_on_who_adds_up_which_share():
    tensors = [numbers(rank) for rank in range(8)]
    whole = pairwise_sum(tensors)
    for share in (1, 2, 4):
        shares = [pairwise_sum(tensors[at : at + share]) for at in range(0, 8, share)]
        assert torch.equal(pairwise_sum(shares), whole)
    a, b, c, d, e, *_ = tensors
    assert torch.equal(pairwise_sum([a, b, c, d, e]), ((a + b) + (c + d)) + e)
    assert not torch.equal(pairwise_sum([a, b, c, d]), ((a + b) + c) + d)
    torch.testing.assert_close(whole.double(), sum(each.double() for each in tensors), rtol=1e-4, atol=1)
    assert [first_half(count) for count in range(2, 10)] == [1, 2, 2, 4, 4, 4, 4, 8]


def added_up() -> torch.Tensor:
    processes = join()
    found = numbers(processes.rank)
    processes.add_up(found)
    return found


@pytest.mark.parametrize(("count", "local"), [(2, 2), (3, 3), (4, 4), (4, 2), (4, 1), (6, 2)])
def test_a_sum_over_processes_is_the_pairwise_one_everywhere(count, local):
    """On one machine, on two, and on four, which make no difference where they have 1, 2, 4, ... processes each."""
    found = called_by_all(added_up, count, local)
    expected = pairwise_sum([pairwise_sum([numbers(at + k) for k in range(local)]) for at in range(0, count, local)])
    assert all(torch.equal(each, expected) for each in found)
    if count in (2, 4):
        assert torch.equal(expected, pairwise_sum([numbers(rank) for rank in range(count)]))


def mixed_up() -> torch.Tensor:
    os.environ["LOCAL_RANK"] = str(rank_here() // 2)  # as with Slurm's cyclic distribution
    return added_up()


def test_ranks_that_are_mixed_over_machines_add_up_too():
    found = called_by_all(mixed_up, 4, 2)
    assert all(torch.equal(each, pairwise_sum([numbers(rank) for rank in range(4)])) for each in found)


def in_bfloat16() -> torch.Tensor:
    processes = join()
    found = numbers(processes.rank).bfloat16()
    processes.add_up(found)
    return found


def test_sums_of_bfloat16_are_rounded_once():
    """Three processes: each sum is of float32 numbers, and only the result is rounded."""
    found = called_by_all(in_bfloat16, 3)
    expected = pairwise_sum([numbers(rank).bfloat16().float() for rank in range(3)]).bfloat16()
    assert all(torch.equal(each, expected) for each in found)


def agreed() -> tuple[object, ...]:
    processes = join()
    rank = processes.rank
    return (
        processes.largest(rank, -rank, 15 if rank == 1 else 0),
        processes.of_all(rank * 10),
        processes.from_leader(f"of {rank}"),
        processes.published("name", f"first of {rank}"),
        processes.published("name", f"second of {rank}"),
        (processes.count, processes.local_rank, processes.local_count),
    )


def test_processes_agree():
    for rank, found in enumerate(called_by_all(agreed, 3)):
        assert found == ([2, 0, 15], [0, 10, 20], "of 0", "first of 0", "second of 0", (3, rank, 3))


def square(number: int) -> tuple[int, int]:
    return number * number, rank_here()


def fail_on(number: int) -> int:
    if number == 4:
        raise UserError("four is too much")
    return number


def crash(number: int) -> int:
    return 1 // (4 - number)


TASKS = {"square": square, "fail_on": fail_on, "crash": crash}


def led() -> object:
    processes = join()

    def lead(_: object) -> dict[str, float]:
        found = dict(processes.map("square", range(7), square))
        assert dict(processes.map("unknown", range(3), lambda number: number)) == {0: 0, 1: 1, 2: 2}
        said = []
        for task in (fail_on, crash):
            try:
                list(processes.map(task.__name__, range(9), task))
            except (UserError, RuntimeError) as error:
                said.append(str(error))
        return {"found": found, "said": said, "each": processes.of_each("square", square, 3)}

    return processes.command(lambda: None, lambda _: TASKS, lead)


def test_tasks_are_computed_in_turn_and_errors_name_their_rank():
    first, *others = called_by_all(led, 3)
    assert first["found"] == {number: (number * number, number % 3) for number in range(7)}
    user, ours = first["said"]
    assert user == "rank 1: four is too much"
    assert ours.startswith("rank 1:\nTraceback")
    assert "ZeroDivisionError" in ours
    assert first["each"] == [(9, 0), (9, 1), (9, 2)]
    assert others == [{}, {}]


def built_badly() -> object:
    processes = join()

    def build() -> None:
        if processes.rank == 2:
            raise UserError("nothing here")

    return processes.command(build, lambda _: {}, lambda _: {"done": 1.0})


def test_what_one_process_cannot_build_ends_the_command():
    first, *others = called_by_all(built_badly, 3)
    assert isinstance(first, UserError)
    assert str(first) == "rank 2: nothing here"
    assert others == [{}, {}]


def test_a_single_process_does_nothing_of_it(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    alone = join()
    assert (alone.count, alone.rank, started()) == (1, 0, 1)
    found = numbers(0)
    alone.add_up(found)
    assert torch.equal(found, numbers(0))
    assert alone.largest(3, 4) == [3, 4]
    assert alone.leader_first(lambda: 5) == 5
    assert alone.command(lambda: 2, lambda _: {}, lambda built: {"built": built}) == {"built": 2}
    assert not torch.distributed.is_initialized()


def test_the_attempts_of_a_launch_have_one_name(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launch() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a1")
    assert launch() == "a1"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launch() not in (None, "none")


def test_the_folder_of_an_earlier_attempt_is_not_that_of_another_launch(monkeypatch, tmp_path):
    """A user may give torchrun the same --rdzv-id again: only a restart goes on in the folder, the newest one."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "cifar")
    first, second = (output().make_folder(tmp_path) for _ in range(2))
    os.utime(first / ".launch", (1, 1))
    assert output().folder_of_launch(tmp_path) is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert output().folder_of_launch(tmp_path) == second
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert output().folder_of_launch(tmp_path) is None
