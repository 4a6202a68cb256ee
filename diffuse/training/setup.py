"""The objects of a training, and what follows from its config."""

from dataclasses import asdict, dataclass
from typing import Any

from diffuse.networks.norm import norm_of
from diffuse.options.schema import TrainConfig, plain
from diffuse.system.distributed import Processes
from diffuse.training.shown import Shown
from diffuse.training.threads import ThreadChoice
from diffuse.training.trainer import Trainer
from diffuse.training.watching import Watcher


@dataclass(frozen=True)
class Training:
    """A training: the trainer, what is shown of its steps, what scores its samples; the config says how often.

    where: the device and the network's precision on it.
    """

    config: TrainConfig
    trainer: Trainer
    shown: Shown
    watcher: Watcher | None
    threads: ThreadChoice
    where: str

    @property
    def processes(self) -> Processes:
        return self.trainer.processes

    def is_due(self, every: int | None) -> bool:
        """Whether this step is a multiple of `every`, or the last one; never for None."""
        return every is not None and (self.trainer.step % every == 0 or self.trainer.step == self.config.steps)

    def content(self) -> dict[str, Any]:
        """The content of a checkpoint: the trainer's state, how steps are computed, and the config and kind of images.

        With the last two, sampling does not need the data set.
        """
        computed = {"threads": self.threads.next, "norm": norm_of(self.trainer.net)}
        described = {"config": plain(self.config), "kind": asdict(self.trainer.data.kind)}
        return {**described, **computed, **self.trainer.state()}
