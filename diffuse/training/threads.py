"""The number of CPU threads of a training: measured, recorded in checkpoints, and changed only after a checkpoint.

Another number of threads adds numbers in another order, so the weights of a run depend on it. More threads are faster
on an idle machine, and many times slower where another program needs the cores.
"""

import time
from collections.abc import Callable
from functools import cache

from diffuse.system.progress import log
from diffuse.system.threads import cores
from diffuse.training.trainer import Trainer

ROUNDS = 3  # each number of threads is measured once in each; one round more, before them, is for warming up
MANY_TIMES = 3.0  # a number of threads that is so many times slower than one thread is not measured again
# The longest time of a measured call. Of a large batch only a part is measured; FIRST_IMAGES images determine its size.
CALL_SECONDS, FIRST_IMAGES = 0.5, 4
WORTH_IT = 0.9  # more threads must need less than this share of the time
WINDOW_SECONDS, WINDOW_STEPS = 4.0, 4  # the speed is the mean over at least this time and these steps
COLLAPSED = 0.5  # below this share of the best speed, the number of threads is measured again
# Between two searches for a better number: the least time, and the largest share of the time that they may take.
REVIEW_SECONDS, REVIEW_SHARE = 120.0, 0.02


def candidates(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def fastest(seconds: dict[int, float]) -> int:
    """The best number of threads, given the seconds of a call with each: more only where each increase is worth it."""
    chosen = min(seconds)
    for threads in sorted(seconds):
        if seconds[threads] < WORTH_IT * seconds[chosen]:
            chosen = threads
    return chosen


class ThreadChoice:
    """The number of threads that a training computes with.

    fixed    the number that the user sets (device.threads, OMP_NUM_THREADS) or an accelerator needs; never changed
    measure  number of threads -> seconds of a call with them
    use      sets the number of threads
    most     the number of cores

    current is the number in use, next the one from the next checkpoint on.
    """

    def __init__(self, fixed: int | None, measure: Callable[[int], float], use: Callable[[int], object], most: int):
        self.fixed, self.measure, self.use, self.most = fixed, measure, use, most
        self.current = self.next = fixed or 1
        self.best = 0.0  # steps per second
        self.seconds, self.steps, self.review_due = 0.0, 0, 0.0

    def begin(self, recorded: int | None) -> None:
        """Before the first step: take the number recorded in the checkpoint, or measure."""
        if self.fixed is None:
            self.next = self._fastest() if recorded is None else recorded
            log.info(f"{self.next} of {self.most} threads" + (", as before" if recorded else ", measured"))
        self.change()

    def after_step(self, seconds: float) -> None:
        """Watch the speed. If it collapses, measure again; a new number is used from the next checkpoint on."""
        self.seconds, self.steps = self.seconds + seconds, self.steps + 1
        if self.fixed is not None or self.seconds < WINDOW_SECONDS or self.steps < WINDOW_STEPS:
            return
        speed = self.steps / self.seconds
        self.best = max(self.best, speed)
        self.seconds, self.steps = 0.0, 0
        if speed < COLLAPSED * self.best and self.current > 1:
            self.review()
            self.best = speed  # what to expect from now on

    def before_checkpoint(self) -> None:
        """Now and then, measure whether another number of threads has become faster."""
        if self.fixed is None and self.most > 1 and time.monotonic() > self.review_due:
            self.review()

    def review(self) -> None:
        """Measure again, for the next checkpoint."""
        self.next = self._fastest()
        self.use(self.current)
        if self.next != self.current:
            log.info(f"{self.next} in place of {self.current} threads from the next checkpoint on: they are faster now")

    @property
    def wants_checkpoint(self) -> bool:
        """Whether another number of threads waits for a checkpoint that records it."""
        return self.next != self.current

    def change(self) -> None:
        """Use the number of threads that is recorded in the checkpoint just saved."""
        if self.next != self.current:
            self.best, self.seconds, self.steps = 0.0, 0.0, 0
        self.current = self.next
        self.use(self.current)

    def _fastest(self) -> int:
        """Measure, and set the time of the next search for a better number."""
        started = time.monotonic()
        found = fastest(self._measure_all()) if self.most > 1 else 1
        self.review_due = time.monotonic() + max(REVIEW_SECONDS, (time.monotonic() - started) / REVIEW_SHARE)
        return found

    def _measure_all(self) -> dict[int, float]:
        """The seconds of each number of threads, measured in turns, so that other programs slow down all of them."""
        seconds: dict[int, list[float]] = {threads: [] for threads in candidates(self.most)}
        for _ in range(1 + ROUNDS):
            for threads, taken in list(seconds.items()):
                taken.append(self.measure(threads))
                if taken[-1] > MANY_TIMES * seconds[1][-1]:
                    del seconds[threads]
        return {threads: sum(taken[1:]) for threads, taken in seconds.items()}


def choice_for(trainer: Trainer) -> ThreadChoice:
    """The choice of a trainer's threads, measured on the gradients of a batch, or of a part of a large batch."""
    device = trainer.device
    fixed = device.threads if device.torch.type == "cpu" else 1

    def seconds(threads: int, images: int) -> float:
        device.compute_with(threads)
        part = trainer.batch(trainer.step).first(images)
        started = time.monotonic()
        trainer.gradients(part)
        taken = time.monotonic() - started
        trainer.optimizer.zero_grad()
        return taken

    @cache
    def images() -> int:
        if device.compiles:  # another number of images would be compiled again
            return trainer.batch_size
        few = min(FIRST_IMAGES, trainer.batch_size)
        taken = min(seconds(1, few) for _ in range(2))
        return min(trainer.batch_size, max(1, int(few * CALL_SECONDS / taken)))

    return ThreadChoice(fixed, lambda threads: seconds(threads, images()), device.compute_with, cores())
