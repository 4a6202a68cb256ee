"""How many threads a training computes with: measured, recorded by checkpoints, and the same bits as if asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffuse.runs.checkpoint_files import all_in
from diffuse.training import threads as module
from diffuse.training.threads import ThreadChoice, candidates, fastest
from tests.support.comparing import assert_same, metrics, read
from tests.support.running import forget_from, trained

LARGE = ["unet.channels=32", "unet.groups=8", "batch_size=64", "optim.decay=none"]  # enough for two threads to share


class Machine:
    """A machine on which a call takes `seconds[threads]`; it notes what was measured and used."""

    def __init__(self, seconds: dict[int, float]):
        self.seconds, self.measured, self.using = seconds, [], 0

    def measure(self, threads: int) -> float:
        self.measured.append(threads)
        return self.seconds[threads]

    def use(self, threads: int) -> None:
        self.using = threads

    def choice(self, fixed: int | None = None) -> ThreadChoice:
        return ThreadChoice(fixed, self.measure, self.use, max(self.seconds))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing asks for a number of threads, and there are two cores, whatever this machine has."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "cores", lambda: 2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_powers_of_two_and_all_cores_are_candidates(most, expected):
    assert candidates(most) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0, 2: 0.6}, 2),
        ({1: 1.0, 2: 0.95}, 1),  # not worth a second core
        ({1: 1.0, 2: 6.0}, 1),  # something else needs the cores
        ({1: 1.0, 2: 0.95, 4: 0.4}, 4),
        ({1: 1.0, 2: 0.5, 4: 0.48}, 2),
    ],
)
def test_more_threads_are_taken_where_they_are_worth_it(seconds, expected):
    assert fastest(seconds) == expected
    machine = Machine(seconds)
    machine.choice().begin(None)
    assert machine.using == expected


def test_many_times_slower_is_measured_only_once():
    machine = Machine({1: 1.0, 2: 10.0})
    machine.choice().begin(None)
    assert machine.measured.count(2) == 1


@pytest.mark.parametrize(("fixed", "recorded", "expected"), [(3, None, 3), (3, 2, 3), (None, 2, 2)])
def test_what_is_asked_for_or_recorded_is_not_measured(fixed, recorded, expected):
    machine = Machine({1: 1.0, 4: 0.1})
    choice = machine.choice(fixed)
    choice.begin(recorded)
    assert (machine.using, machine.measured) == (expected, [])


def test_a_collapse_leads_to_fewer_threads_from_the_next_checkpoint_on():
    machine = Machine({1: 1.0, 2: 0.6})
    choice = machine.choice()
    choice.begin(None)
    for _ in range(20):
        choice.after_step(0.6)
    assert not choice.wants_checkpoint
    machine.seconds[2] = 6.0  # another program begins
    while not choice.wants_checkpoint:
        choice.after_step(6.0)
    assert (machine.using, choice.current, choice.next) == (2, 2, 1)  # a checkpoint comes first, which records 1
    choice.change()
    assert (machine.using, choice.wants_checkpoint) == (1, False)


def test_a_run_that_continues_on_a_busy_machine_finds_fewer_threads_at_a_checkpoint():
    machine = Machine({1: 1.0, 2: 6.0})
    choice = machine.choice()
    choice.begin(2)
    choice.before_checkpoint()
    assert (machine.using, choice.next) == (2, 1)


def test_a_number_asked_for_is_kept_whatever_happens():
    machine = Machine({1: 1.0, 2: 0.6})
    choice = machine.choice(2)
    choice.begin(None)
    for seconds in (0.6,) * 20 + (6.0,) * 20:
        choice.after_step(seconds)
    choice.before_checkpoint()
    assert (machine.using, machine.measured, choice.wants_checkpoint) == (2, [], False)


def test_idle_cores_are_found_again_at_a_checkpoint():
    machine = Machine({1: 1.0, 2: 6.0})
    choice = machine.choice()
    choice.begin(None)
    machine.seconds[2] = 0.6  # the other program has ended
    choice.before_checkpoint()
    assert choice.next == 1  # not so soon
    choice.review_due = 0.0
    choice.before_checkpoint()
    assert (machine.using, choice.next) == (1, 2)
    choice.change()
    assert machine.using == 2


def learned(run: Path) -> dict[str, Any]:
    """What a run has learned, from its newest checkpoint."""
    content = read(all_in(run / "checkpoints")[-1])
    return {name: content[name] for name in ("model", "ema", "optimizer", "sums", "step", "threads")}


def test_a_run_computes_what_its_checkpoints_say(tmp_path, free, monkeypatch):
    """With 1 thread, measured, and 2 after step 3: the same bits as with 1 asked for, then 2; measuring leaves none."""
    monkeypatch.chdir(tmp_path)
    numbers = iter([1, 2])
    monkeypatch.setattr(module, "fastest", lambda seconds: next(numbers))
    monkeypatch.setattr(module, "REVIEW_SECONDS", 0.0)
    monkeypatch.setattr(module, "REVIEW_SHARE", float("inf"))
    changed = trained("changed", *LARGE)
    assert [read(path)["threads"] for path in all_in(changed / "checkpoints")] == [2, 2]

    asked = trained("asked", *LARGE, "steps=3", "device.threads=1")
    one = learned(asked)
    trained("asked", *LARGE, "device.threads=2")  # resumes
    assert_same(learned(asked), learned(changed))

    forget_from(changed, 6)  # killed after the change: it goes on with what the checkpoint of step 3 records
    trained("changed", *LARGE)
    assert_same(learned(changed), learned(asked))
    assert_same(metrics(changed)[-1]["loss"], metrics(asked)[-1]["loss"])

    other = learned(trained("other", *LARGE, "steps=3", "device.threads=2"))  # or this test could not fail
    assert one["threads"] == 1 and other["threads"] == 2
    assert any(not torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
