"""The formulas of a run, built from its config and checked against each other: what is trained, and how it is read.

Schedule, prediction, loss, weight, times and reverse variance are chosen one by one; what cannot work together is
refused here, by the names of the keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from diffuse.data.images import ImageKind
from diffuse.mathematics import loss_weights, losses, predictions
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.likelihood import Decoder, discretised_gaussian, gaussian_density
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.time_sampling import UniformTimes
from diffuse.mathematics.variances import FIXED, Variance, learned
from diffuse.options.build import about, bind, build
from diffuse.options.schema import VARIANCES, TrainConfig
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, require_choice


def without_border(decoder: Decoder, kind: ImageKind) -> Decoder:
    """The decoder of the image alone: the border that the network sees around it is not data and not part of L_0."""

    def crop(value: Tensor) -> Tensor:
        return value if value.ndim == 0 or value.shape[-1] == 1 else kind.from_network(value)

    @wraps(decoder)
    def call(x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return decoder(crop(x0), crop(mean), crop(variance))

    return call if kind.pad else decoder


@dataclass(frozen=True)
class Formulas:
    """What a config says about the mathematics, as objects.

    variance is the name of the reverse variance that sampling and the bound take unless told otherwise.
    """

    schedule: Schedule
    prediction: partial[predictions.Coefficients]
    loss: partial[Tensor]
    time_sampling: UniformTimes
    decoder: Decoder
    variance: str
    needs_float32: bool

    @classmethod
    def of(cls, config: TrainConfig, kind: ImageKind, trust: Sequence[str] = ()) -> "Formulas":
        """Built and checked; UsageError where a choice is impossible, alone or with another."""
        variance = config.variance
        schedule: Schedule = build(config.schedule, "schedule", trust)
        prediction = bind(config.prediction, "prediction", trust)
        time_sampling: UniformTimes = build(config.times, "times", trust, schedule=schedule)
        decoder = without_border(discretised_gaussian if kind.bounded else gaussian_density, kind)
        weight = bind(config.weight, "weight", trust)
        with about("weight"):
            weight(torch.ones(()), torch.ones(()))
        offered: dict[str, Any] = {"weight": weight, "decoder": decoder}
        if variance != "analytic":  # which is estimated when there is a network, so no loss knows it
            offered["variance"] = learned if variance == "learned" else FIXED[variance]
        loss = bind(config.loss, "loss", trust, **offered)
        if loss.func is losses.vlb and weight.func is not loss_weights.simple:
            raise UsageError("weight has no part in loss=vlb, whose terms have the weights of the bound; leave it out")
        needs_float32 = prediction.func in predictions.NEED_FLOAT32
        formulas = cls(schedule, prediction, loss, time_sampling, decoder, variance, needs_float32)
        formulas.refuse_what_cannot_work()
        return formulas

    def denoiser(
        self, net: nn.Module, device: Device, rows: int | None = None, clip: bool = False, float32: bool = False
    ) -> Denoiser:
        """The network, on a device and `rows` images at a time, as a denoiser; if asked, in float32 on any device."""
        return self.denoiser_of(device.network(net, rows, float32=float32 or self.needs_float32), clip)

    @property
    def outputs(self) -> int:
        """How many tensors like an image the network gives: its prediction, and where the variance is learned that."""
        return 2 if self.variance == "learned" else 1

    def where(self, device: Device) -> str:
        """The device, and the precision that the network has there."""
        return f"{device.torch.type}, {self.precision(device)}"

    def precision(self, device: Device) -> str:
        """What the network computes in on this device."""
        return "bfloat16" if device.bfloat16 and not self.needs_float32 else "float32"

    def denoiser_of(self, function: Callable[..., Tensor], clip: bool = False) -> Denoiser:
        """The same of a function that is called as a network is."""
        return Denoiser(function, self.schedule, self.prediction, clip, learned_variance=self.variance == "learned")

    def reverse_variance(self, name: str | None, key: str, estimated: Callable[[], Variance] | None = None) -> Variance:
        """The reverse variance of that name, or the run's own; `estimated` makes the analytic one.

        Raises UsageError, about `key`, where the run cannot have it.
        """
        name = self.variance if name is None else name
        require_choice(key, name, VARIANCES)
        if name == "learned" and self.variance != "learned":
            raise UsageError(f"{key}=learned needs a run trained with variance=learned; this one has {self.variance}")
        if name == "analytic":
            self.refuse_analytic_at_pure_noise(key)
            if estimated is None:
                raise UsageError(
                    f"{key}=analytic is estimated when training is done: choose another {key}, or another sampler, "
                    "for the grids of the training"
                )
            return estimated()
        return learned if name == "learned" else FIXED[name]

    def refuse_what_cannot_work(self) -> None:
        """Raise UsageError where two choices exclude each other."""
        function = self.loss.func
        trains_variance = function in (losses.vlb, losses.hybrid)
        name, variance = function.__name__, self.variance
        if not self.schedule.discrete and (trains_variance or variance == "learned"):
            raise UsageError(
                f"loss={name} with variance={variance} is about steps between levels, and this schedule has none: "
                "choose schedule=linear, cosine, ... or loss=simple with a fixed variance"
            )
        if variance == "learned" and function is losses.simple:
            raise UsageError("loss=simple does not train a variance, so variance=learned needs loss=hybrid or loss=vlb")
        if variance != "learned" and function is losses.hybrid:
            raise UsageError(
                f"loss=hybrid trains the variance by L_vlb, and variance={variance} has nothing to train: "
                "set variance=learned, or loss=simple"
            )
        if variance == "analytic" and function is losses.vlb:
            raise UsageError("loss=vlb needs a variance while it trains, and variance=analytic is estimated afterwards")
        self.refuse_undefined_prediction()
        self.try_loss()
        if variance == "analytic":
            self.refuse_analytic_at_pure_noise("variance")

    def refuse_undefined_prediction(self) -> None:
        """Raise UsageError where the network's output does not determine x0 at some level."""
        name = self.prediction.func.__name__
        if self.prediction.func is predictions.mean and not self.schedule.discrete:
            raise UsageError(
                "prediction=mean is the mean of a step from t to t - 1, and this schedule has no levels: "
                "choose schedule=linear, cosine, ... or another prediction"
            )
        with about("prediction"):
            last = self.prediction(self.schedule, torch.tensor(float(self.schedule.T), dtype=torch.float64))
        if not all(bool(torch.isfinite(number)) for number in last):
            raise UsageError(
                f"prediction={name} is not defined at the last level of this schedule, where alpha is 0: choose "
                "prediction=v, x0 or flow, or a schedule that ends before pure noise"
            )

    def try_loss(self) -> None:
        """Raise UsageError where the loss refuses one of its options: on an image of one pixel."""
        pixel, output = torch.zeros(1, 1, 1, 1), torch.zeros(1, self.outputs, 1, 1)
        with about("loss"):
            self.loss(self.denoiser_of(lambda x, time, y: output), pixel, torch.ones(1), pixel, None)

    def refuse_analytic_at_pure_noise(self, key: str) -> None:
        """Raise UsageError where the estimate from eps divides by alpha = 0."""
        if self.schedule.alpha_sigma(torch.tensor(float(self.schedule.T), dtype=torch.float64))[0] == 0:
            raise UsageError(
                f"{key}=analytic follows from E ||eps||^2, which says nothing of x0 at the last level of this "
                f"schedule, where alpha is 0: choose another {key} (in place of sampler=analytic_ddim, ddim or ddpm)"
            )
