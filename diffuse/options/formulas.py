"""The formulas of a run, built from its config and checked against each other.

Schedule, prediction, loss, weight, times and reverse variance are chosen one by one. Combinations that cannot work are
refused here, with the names of the keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from diffuse.data.images import ImageKind
from diffuse.mathematics import loss_weights, losses, predictions
from diffuse.mathematics.classifier import NoisyClassifier, gradient_of, log_class
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.likelihood import Decoder, discretised_gaussian, gaussian_density
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.spacings import uniform
from diffuse.mathematics.time_sampling import UniformTimes
from diffuse.mathematics.training_noise import TrainingNoise
from diffuse.mathematics.variances import FIXED, Variance, learned
from diffuse.options.build import about, bind, build
from diffuse.options.schema import VARIANCES, TrainConfig
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, require_choice

# For training, as in Ho et al.'s code: a pixel that a network is sure of and wrong about must not outweigh all others.
FLOORED = partial(discretised_gaussian, least=1e-12)


def of_the_data(decoder: Decoder, kind: ImageKind) -> Decoder:
    """The decoder of images as the data set has them: without the border, which only the network sees, in its units."""

    def crop(value: Tensor) -> Tensor:
        return value if value.ndim == 0 or value.shape[-1] == 1 else kind.crop(value)

    @wraps(decoder)
    def call(x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return decoder(crop(x0), crop(mean), crop(variance)) + kind.log_volume

    return call if kind.pad or kind.log_volume else decoder


@dataclass(frozen=True)
class Formulas:
    """The mathematics of a config as objects.

    variance is the name of the default reverse variance of sampling and of the bound, spacing that of the time grid.
    """

    schedule: Schedule
    prediction: partial[predictions.Coefficients]
    loss: partial[Tensor]
    time_sampling: UniformTimes
    decoder: Decoder
    variance: str
    spacing: str
    needs_float32: bool
    noise: TrainingNoise

    @classmethod
    def of(cls, config: TrainConfig, kind: ImageKind, trust: Sequence[str] = ()) -> "Formulas":
        """Build and check them. Raises UsageError if a choice is impossible, alone or with another one."""
        variance = config.variance
        schedule: Schedule = build(config.schedule, "schedule", trust)
        prediction = bind(config.prediction, "prediction", trust)
        time_sampling: UniformTimes = build(config.times, "times", trust, schedule=schedule)
        decoder = of_the_data(discretised_gaussian if kind.eight_bit else gaussian_density, kind)
        in_training = of_the_data(FLOORED, kind) if kind.eight_bit else decoder
        weight = bind(config.weight, "weight", trust)
        with about("weight"):
            weight(torch.ones(()), torch.ones(()))
        offered: dict[str, Any] = {"weight": weight, "decoder": in_training}
        if variance != "analytic":  # the analytic variance is estimated after training, so no loss can use it
            offered["variance"] = learned if variance == "learned" else FIXED[variance]
        offered["progress"] = torch.zeros(())
        loss = bind(config.loss, "loss", trust, **offered)
        refuse_unused_weight(loss.func, weight.func)
        needs_float32 = prediction.func in predictions.NEED_FLOAT32
        spacing = config.sampler.get("spacing") or uniform.__name__
        with about("noise"):
            noise = TrainingNoise(config.noise.nearest, config.noise.perturbation)
        formulas = cls(schedule, prediction, loss, time_sampling, decoder, variance, spacing, needs_float32, noise)
        formulas.refuse_what_cannot_work()
        return formulas

    def denoiser(self, net: nn.Module, device: Device, rows: int | None = None, float32: bool = False) -> Denoiser:
        """The network on a device, `rows` images at a time, as a denoiser; float32=True forbids bfloat16."""
        return self.denoiser_of(device.network(net, rows, float32=float32 or self.needs_float32))

    def classifier(self, net: nn.Module, device: Device, rows: int | None = None) -> NoisyClassifier:
        """The network on a device, `rows` images at a time, as a classifier of noisy images; so is its gradient."""
        logits = device.network(net, rows, float32=self.needs_float32)
        gradient = device.network(gradient_of(log_class(net)), rows, float32=self.needs_float32)
        return NoisyClassifier(logits, self.schedule, self.prediction, gradient)

    def training_loss(self, net: nn.Module, device: Device, progress: Tensor) -> partial[Tensor]:
        """The loss of a network as a function of x0, t, noise and y; progress: how much of the training is done."""
        by_progress = {"progress": progress} if "progress" in self.loss.keywords else {}
        return partial(self.loss, self.trained(net, device), **by_progress)

    def trained(self, net: nn.Module, device: Device) -> Denoiser | NoisyClassifier:
        """What the loss is a function of: the network as a denoiser, or as a classifier."""
        return self.classifier(net, device) if self.classifies else self.denoiser(net, device)

    @property
    def classifies(self) -> bool:
        """Whether the loss trains a classifier of noisy images."""
        return self.loss.func is losses.cross_entropy

    @property
    def outputs(self) -> int:
        """Output tensors per image: the prediction, and the variance if it is learned."""
        return 2 if self.variance == "learned" else 1

    def where(self, device: Device) -> str:
        """The device and the precision of the network on it, for a log line."""
        return f"{device.torch.type}, {self.precision(device)}"

    def precision(self, device: Device) -> str:
        """The precision in which the network computes on this device."""
        return "float32" if self.needs_float32 else device.precision

    def denoiser_of(self, function: Callable[..., Tensor]) -> Denoiser:
        """A denoiser of any function that is called like a network."""
        return Denoiser(function, self.schedule, self.prediction, learned_variance=self.variance == "learned")

    def reverse_variance(self, name: str | None, key: str, estimated: Callable[[], Variance] | None = None) -> Variance:
        """The reverse variance of that name, None for the run's own; `estimated` makes the analytic one.

        Raises UsageError that names `key` if the run cannot have it.
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
        """Raise UsageError if two choices exclude each other."""
        function = self.loss.func
        self.refuse_other_noise()
        if self.classifies:
            self.refuse_for_a_classifier()
            return
        trains_variance = function in (losses.vlb, losses.hybrid)
        name, variance = function.__name__, self.variance
        if not self.schedule.discrete and (trains_variance or variance == "learned"):
            raise UsageError(
                f"loss={name} with variance={variance} needs steps between levels, and this schedule has none: "
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
        if function is losses.consistency and self.schedule.discrete:
            raise UsageError(
                "loss=consistency compares times that are as near as the training asks for, and this schedule has "
                "levels: choose schedule=edm, vp, ve or flow, or method=ect, which does"
            )
        self.refuse_undefined_prediction()
        self.try_loss()
        if variance == "analytic":
            self.refuse_analytic_at_pure_noise("variance")

    def refuse_other_noise(self) -> None:
        """Raise UsageError if the noise of the training is chosen or perturbed, and the loss cannot have that."""
        name, prediction = self.loss.func.__name__, self.prediction.func.__name__
        if not self.noise.is_usual and self.loss.func is not losses.simple:
            raise UsageError(
                f"noise.nearest and noise.perturbation are of loss=simple, and loss={name} needs normal noise: leave "
                "them out"
            )
        if self.noise.perturbation and self.prediction.func is not predictions.eps:
            raise UsageError(
                f"noise.perturbation is noise that is not to be predicted, and prediction={prediction} does not "
                "predict noise: set prediction=eps, or leave it out"
            )

    def refuse_for_a_classifier(self) -> None:
        """Raise UsageError if a classifier cannot have these choices."""
        if self.variance != "fixed_large":
            raise UsageError(
                f"variance={self.variance} is of the reverse steps of a denoiser, and loss=cross_entropy trains a "
                "classifier, which has none: leave it out"
            )
        self.refuse_a_mean_without_levels()
        with about("prediction"):
            self.prediction(self.schedule, torch.ones((), dtype=torch.float64))

    def refuse_a_mean_without_levels(self) -> None:
        """Raise UsageError if the prediction is about steps between levels, and there are none."""
        if self.prediction.func is predictions.mean and not self.schedule.discrete:
            raise UsageError(
                "prediction=mean is the mean of a step from t to t - 1, and this schedule has no levels: "
                "choose schedule=linear, cosine, ... or another prediction"
            )

    def refuse_undefined_prediction(self) -> None:
        """Raise UsageError if the network's output does not determine x0 at some level."""
        name = self.prediction.func.__name__
        self.refuse_a_mean_without_levels()
        with about("prediction"):
            last = self.prediction(self.schedule, torch.tensor(float(self.schedule.T), dtype=torch.float64))
        if not all(bool(torch.isfinite(number)) for number in last):
            raise UsageError(
                f"prediction={name} is not defined at the last level of this schedule, where alpha is 0: choose "
                "prediction=v, x0 or flow, or a schedule that ends before pure noise"
            )

    def try_loss(self) -> None:
        """Call the loss on an image of one pixel, so that it refuses wrong options before training."""
        pixel, output = torch.zeros(1, 1, 1, 1), torch.zeros(1, self.outputs, 1, 1)
        with about("loss"):
            self.loss(self.denoiser_of(lambda x, time, y: output), pixel, torch.ones(1), pixel, None)

    def refuse_analytic_at_pure_noise(self, key: str) -> None:
        """Raise UsageError if the estimate of the analytic variance would divide by alpha = 0."""
        if self.schedule.alpha_sigma(torch.tensor(float(self.schedule.T), dtype=torch.float64))[0] == 0:
            raise UsageError(
                f"{key}=analytic is estimated from E ||eps||^2, which does not determine x0 at the last level "
                f"of this schedule, where alpha is 0: choose another {key} (or sampler=ddim instead of analytic_ddim)"
            )


def refuse_unused_weight(loss: Callable[..., Tensor], weight: Callable[..., Tensor]) -> None:
    """Raise UsageError if there is a weight of the squared error, and the loss has none."""
    why = {
        losses.vlb: "whose terms have the weights of the bound",
        losses.cross_entropy: "which has no squared error",
        losses.consistency: "which divides a distance by that of the noise levels",
    }
    if loss in why and weight is not loss_weights.simple:
        raise UsageError(f"weight is not used by loss={loss.__name__}, {why[loss]}; leave it out")
