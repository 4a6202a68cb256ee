"""The trainer: the state of a training, and the step that changes it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffuse.data.conditions import Condition
from diffuse.data.images import Dataset
from diffuse.mathematics.time_sampling import UniformTimes
from diffuse.mathematics.training_noise import NORMAL, TrainingNoise
from diffuse.networks.augmentation_labels import use_labels
from diffuse.networks.dropout import dropouts_of, use_keys
from diffuse.runs import checkpoint
from diffuse.system.cuda_graph import Captured
from diffuse.system.device import Device
from diffuse.system.errors import Refused, UserError, check
from diffuse.system.pairwise import first_half
from diffuse.training.adamw import load_moments
from diffuse.training.batches import Batch, Batches
from diffuse.training.ema import EMA, PowerAverage
from diffuse.training.sums import Sums

# x0, t, noise and y -> the loss of each image, [b]: a function of mathematics.losses, bound to a denoiser.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class NotFinite(Exception):
    """The loss or the gradient of a step is NaN or infinite."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


class Trainer:
    """The state of a training, and the step that changes it.

    net, loss      the network, on the device, and (x0, t, noise, y) -> [b]: one of `losses`, bound to its denoiser
    data           the data set; the network is trained on its training split
    time_sampling  draws the times of a batch
    optimizer      a fused AdamW over the network's parameters
    ema, averages  the moving average of its weights, and further ones that are kept for after the training
    batch_size     images in a step
    parts          of a batch, computed one after the other for less memory; each process computes as many of them
    seed           all randomness of step k, the batch, the times, the noise, flips and dropout, is a function of
                   (seed, k): there is no random state to save, and how often something is logged changes no weight
    rate           function from the step, counted from 0, to the learning rate; by default the optimizer's
    clip           largest gradient norm
    noise          how the noise of the images is drawn
    progress, steps  a number on the device that the loss reads: the step divided by `steps`
    augment        probability of each change to an image of which the network is told
    condition      what the network is conditioned on, and how often that is dropped
    device         the device of the network and the data
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        data: Dataset,
        time_sampling: UniformTimes,
        optimizer: torch.optim.Optimizer,
        ema: EMA,
        *,
        averages: Sequence[PowerAverage] = (),
        batch_size: int = 64,
        parts: int = 1,
        seed: int = 0,
        rate: Callable[[int], float] | None = None,
        clip: float = math.inf,
        noise: TrainingNoise = NORMAL,
        progress: Tensor | None = None,
        steps: int = 1,
        condition: Condition | None = None,
        augment: float = 0.0,
        device: Device | None = None,
    ):
        self.device = device or Device("cpu")
        where = self.device.torch
        self.net, self.loss, self.data, self.ema, self.optimizer = net, loss, data, ema, optimizer
        self.averages = {average.length: average for average in averages}
        self.time_sampling = time_sampling.to(where)
        self.batch_size, self.parts, self.seed, self.clip = batch_size, parts, seed, clip
        self.processes = self.device.processes
        check(parts >= 1 and batch_size % parts == 0, "parts", f"a divisor of batch_size={batch_size}", parts)
        count = self.processes.count
        check(parts % count == 0, "parts", f"a multiple of the number of processes, {count}", parts)
        if not all(parameters.get("fused") for parameters in optimizer.param_groups):
            raise Refused("optimizer", "must be fused, as AdamW(..., fused=True): only fused ones skip a failed step")
        initial_rate, *others = {float(parameters["lr"]) for parameters in optimizer.param_groups}
        if others:
            raise Refused("optimizer", "must have one learning rate for all parameters, which `rate` may change")
        self.rate, self.sums, self.step, self.steps = rate or (lambda step: initial_rate), Sums(where), 0, steps
        self.progress = torch.zeros((), device=where) if progress is None else progress
        # What changes from step to step is in tensors, as a step recorded in a CUDA graph needs it. The rate in float64
        # gives the same bits as a Python number; in a graph it must be on the device, in float32.
        captured = self.device.captures
        self._learning_rate = torch.zeros((), device=where) if captured else torch.zeros((), dtype=torch.float64)
        self._ema_rates = torch.zeros(1 + len(self.averages), device=where)
        self._step = torch.zeros((), dtype=torch.int64, device=where)
        self._failed = torch.full((), -1, device=where)  # the first step that failed
        for parameters in optimizer.param_groups:
            parameters["lr"], parameters["capturable"] = self._learning_rate, captured
        self.condition = condition or Condition()
        self.batches = Batches(data, self.time_sampling, noise, self.condition, batch_size, seed, self.device, augment)
        self._dropouts = dropouts_of(net)
        self._computed = self._compute_or_replay()

    def advance(self) -> None:
        """One step of training: Ho et al. 2020, algorithm 1. On CUDA it returns before the step is finished.

        Raises NotFinite where the loss or the gradient is NaN or infinite; on such a device only once `refuse_failure`
        is called. Weights, average and optimizer stay as they were before that step.
        """
        self.begin()
        self._computed()
        if not self.device.asynchronous:
            self.refuse_failure()
        self.step += 1

    @property
    def all_averages(self) -> list[EMA]:
        """The averages of the weights, that which samples are drawn with first."""
        return [self.ema, *self.averages.values()]

    def begin(self) -> None:
        """Put what is special about the next step into tensors that stay: its rates, its number, its images."""
        self._learning_rate.fill_(self.rate(self.step))
        for place, average in enumerate(self.all_averages):
            self._ema_rates[place].fill_(average.rate(self.step))
        self._step.fill_(self.step)
        self.progress.fill_(self.step / self.steps)
        self.batches.begin(self.step)

    def compute(self) -> None:
        """The step that was begun: noise, levels, losses, gradients, clipping, optimizer, average, sums.

        It does the same operations on the same tensors in every step, so that a CUDA graph can record it.
        """
        batch = self.batches.drawn()
        losses = torch.cat(self.gradients_in_pairs(self.own(batch.parts(self.parts))))
        self.update(batch, self.add_up_over_processes(losses))

    def own(self, parts: list[Batch]) -> list[Batch]:
        """Those parts of a batch that this process computes: as many as each other one, the first ones on rank 0."""
        share = self.parts // self.processes.count
        return parts[self.processes.rank * share :][:share]

    def gradients_in_pairs(self, parts: list[Batch]) -> list[Tensor]:
        """The gradients of parts of a batch, added up as `pairwise_sum` does it. Returns the losses of each part."""
        if len(parts) <= 2:
            return [self.gradients(part) for part in parts]
        half = first_half(len(parts))
        losses = self.gradients_in_pairs(parts[:half])
        held = [weight.grad for weight in self.net.parameters() if weight.grad is not None]
        self.optimizer.zero_grad()
        losses += self.gradients_in_pairs(parts[half:])
        torch._foreach_add_([weight.grad for weight in self.net.parameters() if weight.grad is not None], held)
        return losses

    def add_up_over_processes(self, losses: Tensor) -> Tensor:
        """Replace the gradients by their sums over all processes. Returns the losses of all images, [b].

        Each process has drawn the whole batch and knows the losses of its share. Sums and losses have the same
        bits on every process, and so have the weights, their average and the time sampling after the update. Where
        each computes 1, 2, 4, 8, ... parts, they have those of a single process that computes all parts, too.
        """
        if self.processes.count == 1:
            return losses
        gradients = [weight.grad for weight in self.net.parameters() if weight.grad is not None]
        own = torch.cat([gradient.flatten() for gradient in gradients]).to(self.device.gradients)
        self.processes.add_up(own)
        for gradient, total in zip(gradients, own.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))
        found = losses.new_zeros(self.batch_size)
        found[len(losses) * self.processes.rank :][: len(losses)] = losses
        self.processes.add_up(found)  # one number and zeros: exact
        return found

    def _compute_or_replay(self) -> Callable[[], None]:
        return Captured(self.compute, self.optimizer.zero_grad) if self.device.captures else self.compute

    def gradients(self, part: Batch) -> Tensor:
        """Add the gradients of a part of a batch to those of the parameters. Returns the losses of its images, [b]."""
        use_keys(self._dropouts, part.dropout)
        use_labels(self.net, part.augmentation)
        losses = self.loss(part.x0, part.t, part.noise, part.y)
        ((part.importance * losses).sum() / self.batch_size).backward()
        return losses.detach()

    def update(self, batch: Batch, losses: Tensor) -> None:
        """Clip the gradients, and update the parameters, their average, the time sampling and the sums.

        A step that failed changes nothing, and neither does any step after it.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        finite = torch.isfinite(losses).all() & torch.isfinite(norm)
        self._failed.copy_(torch.where((self._failed < 0) & ~finite, self._step, self._failed))
        good = self._failed < 0
        if self.device.torch.type == "mps":  # whose fused optimizer ignores found_inf
            self.refuse_failure()
        # A fused optimizer does nothing where found_inf, which gradient scalers set, is 1.
        self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        for rate, average in zip(self._ema_rates, self.all_averages, strict=True):
            average.update(torch.where(good, rate, 0))
        self.time_sampling.learn(torch.where(good, batch.t, 0), losses)
        part_of_time = batch.t / self.time_sampling.schedule.T
        self.sums.add(part_of_time, batch.importance * losses, batch.importance, norm, good)

    def report(self) -> dict[str, float]:
        """Means since the last report: loss, loss by quartile of t, gradient norm; and the last learning rate.

        Without a step since then they are NaN. Raises NotFinite as `refuse_failure` does.
        """
        self.refuse_failure()
        return {**self.sums.means(), "lr": self.rate(max(0, self.step - 1))}

    def batch(self, step: int) -> Batch:
        """The data of a step. Afterwards torch's generators are in the state that the network begins with."""
        self.batches.begin(step)
        return self.batches.drawn()

    def forget_gradients(self) -> None:
        """Give up a step that was not finished, and the memory that it had."""
        self.optimizer.zero_grad()
        if self.device.torch.type == "cuda":
            torch.cuda.empty_cache()

    def refuse_failure(self) -> None:
        """Raise NotFinite if the loss or gradient of a step was NaN or infinite. Waits for the device."""
        if (failed := int(self._failed)) >= 0:
            raise NotFinite(failed)

    def fingerprint(self, _: object = None) -> int:
        """A number that depends on every bit of what is trained: the same on every process.

        That is the weights, their average, the optimizer's moments and what the time sampling has learned.
        """
        moments = [each for state in self.optimizer.state.values() for each in state.values()]
        averages = [weight for average in self.all_averages for weight in average.net.parameters()]
        trained = [*self.net.parameters(), *averages, *moments, *self.time_sampling.buffers()]
        bits = (each.detach().contiguous().flatten().view(torch.int32) for each in trained)
        return sum(int(each.sum(dtype=torch.int64)) for each in bits)

    def failure(self, step: int) -> dict[str, Any]:
        """The content of a file that computes step `step` again, on the weights as they are now."""
        batch = self.batch(step)._asdict()
        cuda = torch.cuda.get_rng_state() if self.device.torch.type == "cuda" else None
        return {**self.state(), "failure": {**batch, "random": {"cpu": torch.get_rng_state(), "cuda": cuda}}}

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint needs to continue from here."""
        return {
            "data_sha256": self.data.sha256,
            "model": self.net.state_dict(),
            "ema": self.ema.net.state_dict(),
            "averages": {str(length): average.net.state_dict() for length, average in self.averages.items()},
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums.values,
            "times": self.time_sampling.state_dict(),
        }

    def restore(self, saved: checkpoint.Stored) -> None:
        """Continue from a checkpoint. Raises UserError where it does not fit this Trainer or its images.

        Learning rates come from `rate`, not from the checkpoint.
        """
        content = saved.content
        with checkpoint.refuse_mismatch(saved.path):
            if content["data_sha256"]["train"] != self.data.train.sha256:
                raise UserError(
                    f"the training images of {self.data.kind.name} are not those that the run began with: their hash "
                    "differs.\nPut back the images as they were (dataset.path, data_dir), or begin a new run"
                )
            self.net.load_state_dict(content["model"])
            self.ema.net.load_state_dict(content["ema"])
            for length, average in self.averages.items():
                average.net.load_state_dict(content["averages"][str(length)])
            begun = content["optimizer"]["state"] or content["step"]  # before the first step there are no moments
            load_moments(self.optimizer, self.net, content["optimizer"]["state"] if begun else None)
            self.sums.load(content["sums"])
            self.time_sampling.load_state_dict(content["times"])
            self.step = content["step"]
        self._failed.fill_(-1)
        self._computed = self._compute_or_replay()  # a graph would go on with the tensors of before

    def save(self, path: str | Path) -> None:
        """Write a checkpoint that restores this Trainer; `diffuse sample` needs the config too, which is not in it."""
        self.refuse_failure()
        checkpoint.write(Path(path), self.step, self.state())

    def load(self, path: str | Path) -> None:
        """Continue from a checkpoint."""
        self.restore(checkpoint.load_checkpoint(Path(path)))
