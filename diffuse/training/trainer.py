"""What changes while training, and the step that changes it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.data.images import Dataset, to_float
from diffuse.mathematics.schedules import Schedule
from diffuse.options.build import build, build_dataset, build_network
from diffuse.options.formulas import Formulas
from diffuse.runs.drawing import Sampler, draw, image_labels
from diffuse.runs.pictures import forward_process
from diffuse.system.device import Device, send
from diffuse.system.errors import UsageError, UserError
from diffuse.system.randomness import ImageNoise, generator, reseed
from diffuse.training.ema import EMA

QUARTILES = 4
BYTES_AROUND_A_TENSOR = 300  # in a checkpoint, for its name and place
# What is added up on the device between two lines of metrics, the first two by quartile of t.
SUMS = {"loss": QUARTILES, "images": QUARTILES, "grad_norm": 1, "steps": 1}


class NotFinite(Exception):
    """The loss or the gradient of a step is not a finite number."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


class Trainer:
    """Everything that changes while training, and the step that changes it.

    All randomness of step k, the batch, the levels, the noise, flips and dropout, is a function of (seed, k): there
    is no random state to save, and no interval of logging or pictures changes a weight.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config, trust = config, config["trust"]
        self.device: Device = build(config["device"], "device", trust)
        self.data: Dataset = build_dataset(config, trust)
        self.formulas = Formulas.of(config, self.data.kind, trust)
        self.schedule = self.formulas.schedule
        refuse_more_steps_than_levels(config["sampler"].get("steps"), self.schedule)
        self.sampler = Sampler(config["sampler"], self.formulas, self.data.kind, trust)
        self.times = self.formulas.times.to(self.device.torch)
        reseed(config["seed"], "weights")
        self.net = self.device.place(build_network(config, self.data.kind, trust))
        self.ema = EMA(self.net, config["ema"]["decay"])
        if self.device.compiles:
            self.net.compile()
        self.denoiser = self.formulas.denoiser(self.net, self.device)
        optim = config["optim"]
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=optim["lr"], weight_decay=optim["weight_decay"], fused=True
        )
        self.sums = {name: torch.zeros(size, device=self.device.torch) for name, size in SUMS.items()}
        self.step = 0
        self._failed = torch.full((), -1, device=self.device.torch)
        self._images = self.device.hold(torch.from_numpy(self.data.train.images))
        self._labels: Tensor | None = None
        if config["class_conditional"] and self.data.train.labels is not None:
            self._labels = torch.from_numpy(self.data.train.labels).to(self._images.device)

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.net.parameters())

    def advance(self) -> None:
        """One step of training: Ho et al. 2020, algorithm 1. Does not wait for a device that runs ahead.

        Raises NotFinite where the loss or the gradient is no finite number, on such a device only once `refuse_failure`
        is called. In either case weights and optimizer stay as they were before that step; on such a device the
        average of the weights goes on moving towards them meanwhile.
        """
        config = self.config
        x0, y, t, weights, noise = self.ingredients(self.step)
        losses = self.formulas.loss(self.denoiser, x0, t, noise, y)
        (weights * losses).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config["optim"]["clip"])
        self._watch(losses, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config["optim"], self.step, config["steps"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.step)
        # A step that failed, and those after it until a device that runs ahead is asked, teach nothing.
        self.times.learn(torch.where(self._failed < 0, t, 0), losses.detach())
        self._add_up(losses.detach(), t, weights, norm)
        self.step += 1

    def report(self) -> dict[str, float]:
        """Means since the last report: loss, loss by quartile of t, gradient norm; and the last learning rate."""
        losses, images, (norm,), (steps,) = (self.sums[name].tolist() for name in SUMS)
        for values in self.sums.values():
            values.zero_()
        quartiles = enumerate(zip(losses, images, strict=True), start=1)
        return {
            "loss": sum(losses) / sum(images),
            **{f"loss_t_quartile/{number}": loss / count for number, (loss, count) in quartiles if count},
            "grad_norm": norm / steps,
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def ingredients(self, step: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """What a step is made of: images, labels, times, the weights of their losses, noise.

        Leaves torch's generators ready for dropout.
        """
        reseed(self.config["seed"], "train", step)
        x0, y = self._batch(step)
        return x0, y, *self.times.draw(len(x0), self.device.torch), torch.randn_like(x0)

    def refuse_failure(self) -> None:
        """Raise NotFinite if a step had a loss or gradient that is no finite number. Waits for the device."""
        failed = int(self._failed)
        if failed >= 0:
            raise NotFinite(failed)

    def failure(self, step: int) -> dict[str, Any]:
        """What a file needs for `replay` to do step `step` again, on the weights as they are now."""
        x0, y, t, weights, noise = self.ingredients(step)
        cuda = torch.cuda.get_rng_state() if self.device.torch.type == "cuda" else None
        random = {"cpu": torch.get_rng_state(), "cuda": cuda}
        made_of = {"x0": x0, "y": y, "t": t, "weights": weights, "noise": noise, "random": random}
        return {**self.state(), "failure": made_of}

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must hold to continue from here, and to sample without the data set."""
        return {
            "config": dict(self.config),
            "kind": asdict(self.data.kind),
            "data_sha256": self.data.sha256,
            "model": self.net.state_dict(),
            "ema": self.ema.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums,
            "times": self.times.state_dict(),
        }

    def load(self, content: Mapping[str, Any]) -> None:
        """Continue from the content of a checkpoint. Raises UserError where it is not about the same images.

        The optimizer's rates come from the config, not from the checkpoint.
        """
        if content["data_sha256"]["train"] != self.data.train.sha256:
            raise UserError(
                f"the training images of {self.data.kind.name} are not those that the run began with: their hash "
                "differs.\nBring back the images as they were (dataset.path, data_dir), or begin a new run"
            )
        self.net.load_state_dict(content["model"])
        self.ema.net.load_state_dict(content["ema"])
        state = {}
        for number, weight in enumerate(self.net.parameters()):
            saved, moments = content["optimizer"]["state"][number], ("exp_avg", "exp_avg_sq")
            check_shapes(saved, {"step": (), **dict.fromkeys(moments, weight.shape)}, f"optimizer state {number}")
            # In the weight's own memory layout, which the device it was saved on may have had otherwise: fused AdamW
            # goes through both side by side.
            state[number] = {**saved, **{name: torch.empty_like(weight).copy_(saved[name]) for name in moments}}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        check_shapes(content["sums"], {name: (size,) for name, size in SUMS.items()}, "sums")
        self.sums = {name: values.to(self.device.torch) for name, values in content["sums"].items()}
        self.times.load_state_dict(content["times"])
        self.step = content["step"]

    @property
    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint is: weights, their average, AdamW's two moments and step, in a zip file."""
        weights = self.net.state_dict().values()
        return 4 * sum(weight.nbytes for weight in weights) + 5 * len(weights) * BYTES_AROUND_A_TENSOR

    def draw(self, numbers: range, each_step: Callable[[], None] = lambda: None) -> Tensor:
        """The images with these numbers from the EMA weights, from the same noise each time."""
        kind, rows = self.data.kind, self.device.rows(self.data.kind.side, len(numbers))
        denoiser = self.formulas.denoiser(self.ema.net, self.device, rows, clip=self.sampler.clip)
        labels = None if self._labels is None else image_labels(numbers, kind, None, self.device)
        return draw(denoiser, self.sampler, numbers, self.config["seed"], kind, self.device, labels, each_step)

    def forward_picture(self) -> Tensor:
        """What the network is asked to undo: eight training images, from x_0 to x_T."""
        x0 = to_float(torch.from_numpy(self.data.train.images[:8]))
        return forward_process(self.denoiser, x0, ImageNoise(self.config["seed"], "forward", range(len(x0)))(x0))

    def _batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The images of a step, in [-1, 1], flipped at random where that is allowed, and their labels."""
        rows = batch_rows(self.config["seed"], step, self.config["batch_size"], len(self._images))
        index = send(torch.from_numpy(rows), self._images.device)
        x0 = self.data.kind.to_network(self.device.send(self._images[index]))
        if self.data.flip:
            flipped = torch.rand(len(x0), 1, 1, 1, device=x0.device) < 0.5
            x0 = torch.where(flipped, x0.flip(-1), x0)
        return x0, None if self._labels is None else self.device.send(self._labels[index])

    def _watch(self, losses: Tensor, norm: Tensor) -> None:
        """Note a step whose loss or gradient is no finite number; the optimizer passes over it and all after it."""
        finite = torch.isfinite(losses).all() & torch.isfinite(norm)
        self._failed = torch.where((self._failed < 0) & ~finite, self.step, self._failed)
        if self.device.runs_ahead:
            # how a gradient scaler tells a fused optimizer to do nothing
            self.optimizer.found_inf = (self._failed >= 0).float()  # type: ignore[attr-defined]
        else:
            self.refuse_failure()

    def _add_up(self, losses: Tensor, t: Tensor, weights: Tensor, norm: Tensor) -> None:
        quartile = ((t * QUARTILES / self.schedule.T).ceil() - 1).clamp(0, QUARTILES - 1).long()
        self.sums["loss"].index_add_(0, quartile, weights * losses)
        self.sums["images"].index_add_(0, quartile, weights)
        self.sums["grad_norm"] += norm
        self.sums["steps"] += 1


def refuse_more_steps_than_levels(steps: Any, schedule: Schedule) -> None:
    """Raise UsageError where a short table has fewer levels than the grids of samples are drawn with."""
    if isinstance(steps, int) and steps > schedule.T:
        raise UsageError(
            f"sampler.steps={steps}, with which training draws its grids, is more than the {schedule.T} levels of the "
            f"schedule: set sampler.steps={schedule.T} or less"
        )


def check_shapes(tensors: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], what: str) -> None:
    """Raise ValueError unless these are float32 tensors of these shapes, and no others."""
    for name in {*tensors, *shapes}:
        tensor = tensors[name]
        if name not in shapes or tensor.dtype != torch.float32 or tuple(tensor.shape) != tuple(shapes[name]):
            raise ValueError(f"{name} of {what} is not what it should be")


def learning_rate(optim: Mapping[str, Any], step: int, steps: int) -> float:
    """The rate of step `step` (from 0): rising linearly over `warmup` steps, times the decay over the whole run."""
    warmth = min(1.0, (step + 1) / optim["warmup"]) if optim["warmup"] else 1.0
    done = step / steps
    left = {"none": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[optim["decay"]]
    return float(optim["lr"] * warmth * left)


def batch_rows(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Which of `count` images step `step` is about: every image once an epoch, in an order drawn for each epoch."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = epoch_order(seed, int(epoch), count)[positions[here] % count]
    return rows


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the images in one epoch; the last two are remembered, since every step asks."""
    return generator(seed, "epoch", epoch).permutation(count)
