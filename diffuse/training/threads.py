"""The number of threads of a training on a CPU: measured, recorded in checkpoints, changed only where one records it.

Sums come out in another order with another number of threads, so that the number is part of what a run computes. More
threads are faster on an idle machine and many times slower where another program needs the cores.
"""

import time
from collections.abc import Callable
from functools import cache

from diffuse.system.progress import log
from diffuse.system.threads import cores
from diffuse.training.trainer import Trainer

ROUNDS, MANY_TIMES = 3, 3.0  # in which each number of threads is measured once, after one to warm up
# A measured call takes at most so long: of a large batch a part is measured, whose size a call with few images says.
MEASURED_SECONDS, FIRST_IMAGES = 0.5, 4
WORTH_IT = 0.9  # more threads must need less than this share of the time
WINDOW_SECONDS, WINDOW_STEPS = 4.0, 4  # over which the speed is watched
COLLAPSED = 0.5  # the share of the best speed below which something must have happened
# Between reviews of a number that may have become too small: the least time, and the largest share of it for reviewing.
REVIEW_SECONDS, REVIEW_SHARE = 120.0, 0.02


def candidates(most: int) -> list[int]:
    """1, 2, 4, ... and the most."""
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def fastest(seconds: dict[int, float]) -> int:
    """The number of threads to take: more only where each step up is worth it."""
    chosen = min(seconds)
    for threads in sorted(seconds):
        if seconds[threads] < WORTH_IT * seconds[chosen]:
            chosen = threads
    return chosen


class ThreadChoice:
    """How many threads a training computes with.

    fixed    what the user asked for (device.threads, OMP_NUM_THREADS) or an accelerator needs: it is never changed
    measure  number of threads -> seconds of a call with them
    """

    def __init__(self, fixed: int | None, measure: Callable[[int], float], use: Callable[[int], object], most: int):
        self.fixed, self.measure, self.use, self.most = fixed, measure, use, most
        self.current = self.next = fixed or 1
        self.best = 0.0  # steps a second
        self.seconds, self.steps = 0.0, 0
        self.review_due = 0.0

    def begin(self, recorded: int | None) -> None:
        """Before the first step: take the number in the checkpoint, or measure."""
        if self.fixed is None:
            self.next = self._fastest() if recorded is None else recorded
            log.info(f"{self.next} of {self.most} threads" + (", as before" if recorded else ", measured"))
        self.change()

    def after_step(self, seconds: float) -> None:
        """Watch the speed; a collapse leads to another `next`, which waits for a checkpoint."""
        self.seconds, self.steps = self.seconds + seconds, self.steps + 1
        if self.fixed is not None or self.seconds < WINDOW_SECONDS or self.steps < WINDOW_STEPS:
            return
        speed = self.steps / self.seconds
        self.best = max(self.best, speed)
        self.seconds, self.steps = 0.0, 0
        if speed < COLLAPSED * self.best and self.current > 1:
            self.review()
            self.best = speed  # what it is from now on

    def before_checkpoint(self) -> None:
        """Review a number that may have become too small, now and then."""
        if self.fixed is None and self.current < self.most and time.monotonic() > self.review_due:
            self.review()

    def review(self) -> None:
        """Measure again."""
        self.next = self._fastest()
        self.use(self.current)
        if self.next != self.current:
            log.info(f"{self.next} in place of {self.current} threads from the next checkpoint on: they are faster now")

    @property
    def wants_checkpoint(self) -> bool:
        """Whether a change waits for a checkpoint that records it."""
        return self.next != self.current

    def change(self) -> None:
        """Compute with the number of threads that the checkpoint just written records."""
        if self.next != self.current:
            self.best, self.seconds, self.steps = 0.0, 0.0, 0
        self.current = self.next
        self.use(self.current)

    def _fastest(self) -> int:
        started = time.monotonic()
        found = fastest(self._measured()) if self.most > 1 else 1
        ended = time.monotonic()
        self.review_due = ended + max(REVIEW_SECONDS, (ended - started) / REVIEW_SHARE)
        return found

    def _measured(self) -> dict[int, float]:
        """The mean time of each number, measured in turn, so that what other programs do meets them all.

        A number that is many times slower than a single thread is left out at once.
        """
        seconds = dict.fromkeys(candidates(self.most), 0.0)
        for round in range(1 + ROUNDS):
            alone = self.measure(1)
            seconds[1] += alone if round else 0
            for threads in [threads for threads in seconds if threads > 1]:
                taken = self.measure(threads)
                seconds[threads] += taken if round else 0
                if taken > MANY_TIMES * alone:
                    del seconds[threads]
        return seconds


def choice_for(trainer: Trainer) -> ThreadChoice:
    """The choice of a trainer's threads, measured by the gradients of a batch, or of a part of a large one."""
    device = trainer.device
    if device.torch.type != "cpu":
        return ThreadChoice(1, lambda threads: 0.0, lambda threads: None, 1)

    def seconds(threads: int, images: int) -> float:
        device.compute_with(threads)
        batch = trainer.batch(trainer.step).first(images)
        started = time.monotonic()
        trainer.gradients(batch)
        taken = time.monotonic() - started
        trainer.optimizer.zero_grad()
        return taken

    @cache
    def images() -> int:
        if device.compiles:  # another number of images would be compiled for itself
            return trainer.batch_size
        few = min(FIRST_IMAGES, trainer.batch_size)
        taken = min(seconds(1, few) for _ in range(2))
        return min(trainer.batch_size, max(1, int(few * MEASURED_SECONDS / taken)))

    return ThreadChoice(device.threads, lambda threads: seconds(threads, images()), device.compute_with, cores())
