"""The cost of a training in time and memory, measured in its first steps."""

import shlex
import time

from diffuse.runs.output import Output
from diffuse.system.files import format_bytes
from diffuse.system.progress import Progress, duration, log
from diffuse.training.trainer import Trainer

# The speed is measured after the warm-up, up to one of these steps; after these times if that is earlier.
WARMUP_STEPS, MEASURED_STEPS = 5, 25
WARMUP_SECONDS, MEASURED_SECONDS = 5.0, 20.0
LONG_ON_CPU = 3 * 3600.0  # seconds
# A network that trains in tens of minutes on a CPU, on images of 28 x 28.
CPU_SIZED = (
    "unet=tiny",
    "unet.channel_mult=[1,2,2]",
    "unet.attention=[8]",
    "batch_size=64",
    "steps=4000",
    "optim.lr=2e-3",
)


class Forecast:
    """Measures the first steps, and logs once how fast training is, how long it will take and its peak memory.

    smaller: a command line that trains in less time, for a CPU on which this training would take hours, or ""
    """

    def __init__(self, trainer: Trainer, steps: int, progress: Progress, smaller: str):
        self.trainer, self.progress, self.steps, self.smaller = trainer, progress, steps, smaller
        self.first, self.began = trainer.step, time.monotonic()
        self.is_warm = self.is_logged = False

    def after_step(self) -> None:
        """Call after every step."""
        done, seconds = self.trainer.step - self.first, time.monotonic() - self.began
        left, device = self.steps - self.trainer.step, self.trainer.device
        if self.is_logged:
            return
        if not self.is_warm and (done >= WARMUP_STEPS or seconds > WARMUP_SECONDS) and left:
            device.synchronize()
            self.progress.count_from_here()
            self.is_warm = True
        elif done >= MEASURED_STEPS or seconds > MEASURED_SECONDS or not left:
            device.synchronize()
            rate, memory = self.progress.per_second(), format_bytes(device.peak_memory())
            time_left = f"{left:,} more steps will take about {duration(left / rate)}" if left else "all steps are done"
            log.info(f"{rate * self.trainer.batch_size:,.0f} images/s: {time_left}; peak memory {memory}")
            if self.smaller and device.torch.type == "cpu" and left / rate > LONG_ON_CPU:
                log.info(f"on a CPU a smaller network gives a first answer sooner: {self.smaller}")
            self.is_logged = True


def smaller_training(output: Output) -> str:
    """The command line of a training with a network for CPUs in it; empty for the job of a sweep."""
    if output.sweep_folder or "resume" in output.typed_keys:
        return ""
    replaced = {"name", *(word.partition("=")[0] for word in CPU_SIZED)}
    typed = [word for word in shlex.split(output.command)[2:] if word.partition("=")[0] not in replaced]
    return shlex.join(["diffuse", "train", *typed, *CPU_SIZED])
