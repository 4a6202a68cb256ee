"""Guidance: a prediction that is moved further towards what is wanted. Each is a denoiser around a denoiser.

Two denoisers of the same images are one formula, in which `scale` says how far to go from the second one through the
first one and beyond:

    D = D_other + scale (D_main - D_other)        scale 0 is D_other, 1 is D_main

For classifier-free guidance D_main has the label and D_other the null label; for autoguidance D_other is a worse
network. Others write D_main + w (D_main - D_other), so scale = 1 + w (Ho and Salimans 2022, equation 6). x0, eps, v
and score of one x_t depend on each other linearly, so the formula is the same in all of them. It would not be after
clipping, which therefore comes after guidance.

Classifier guidance has one denoiser and adds the gradient of a classifier's log-probability instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffuse.mathematics.classifier import OfClass
from diffuse.mathematics.denoiser import AnyDenoiser, Prediction
from diffuse.mathematics.schedules import per_image
from diffuse.mathematics.wrappers import Wrapper
from diffuse.system.errors import check

Null = Callable[[Tensor], Tensor]  # labels -> the null label for each of them
EVERYWHERE = (0.0, math.inf)


@dataclass(frozen=True)
class Guided(Wrapper):
    """What all guidance has: how strong it is, and at which noise levels. Without it a prediction is that of `inner`.

    scale     how far to go
    interval  the lowest and the highest noise level sigma / alpha with guidance: Kynkaanniemi et al. 2024
    """

    scale: float = 1.0
    interval: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        check(math.isfinite(self.scale), "scale", "a finite number", self.scale)
        low, high = self.interval
        expected = "[low, high], two noise levels sigma / alpha with 0 <= low < high"
        check(0 <= low < high, "interval", expected, [low, high])

    def active(self, t: Tensor) -> Tensor:
        """Whether there is guidance at a time, or at each of several; of the shape of t, on the CPU."""
        return self.inside(*self.schedule.alpha_sigma(t.cpu().double()))

    def inside(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Whether noise levels are in the interval; where alpha is 0 they are infinite."""
        low, high = self.interval
        return (low * alpha <= sigma) & (sigma <= high * alpha if math.isfinite(high) else alpha >= 0)

    def calls(self, guess: Prediction) -> int:
        """Calls of the denoiser's network that the prediction for an image took, which is of a single time."""
        return 1

    def pushed(self, guess: Prediction, slope: Tensor) -> Tensor:
        """x0 + scale (sigma^2 / alpha) slope, for a gradient with respect to x_t, which is added to the score.

        Only inside of the interval, and where alpha is above 0: elsewhere x_t holds nothing of the image.
        """
        guided = (guess.alpha > 0) & self.inside(guess.alpha, guess.sigma)
        shift = self.scale * guess.sigma**2 / guess.alpha * slope
        return torch.where(guided.to(slope.device), guess.x0 + shift, guess.x0)


@dataclass(frozen=True)
class Contrast(Guided):
    """D_other + scale (D_main - D_other), where `inner` is D_main; a learned variance is that of D_main.

    rescale     share in which the deviation of the network's output is set back to that of D_main: phi of Lin et al.
                2024, section 3.4. It makes up for outputs that grow with the scale
    parallel    share that is kept of the part of D_main - D_other along D_main: eta of adaptive projected guidance
                (Sadat et al. 2025), without its momentum. 0 saturates less at large scales; 1 is the plain formula
    norm_limit  the largest norm of D_main - D_other over an image, their r

        delta = min(1, norm_limit / |D_main - D_other|) (D_main - D_other)
        D = D_main + (scale - 1) (delta - (1 - parallel) <delta, D_main> D_main / |D_main|^2)
    """

    rescale: float = 0.0
    parallel: float = 1.0
    norm_limit: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.rescale <= 1, "rescale", "between 0 and 1", self.rescale)
        check(0 <= self.parallel <= 1, "parallel", "between 0 and 1", self.parallel)
        check(self.norm_limit > 0, "norm_limit", "positive", self.norm_limit)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        active = self.active(t)
        if self.scale == 1 or not active.any():
            return self.inner(x_t, t, y)
        if active.all():
            return self.other(x_t, t, y) if self.only_other else self.combined(*self.both(x_t, t, y))
        main = self.inner(x_t, t, y)  # each image has its own time, and some are guided
        rows = active.nonzero().flatten().to(x_t.device)
        other = self.other(x_t[rows], t[rows.to(t.device)], None if y is None else y[rows])
        guided = other if self.only_other else self.combined(main.of(rows), other)
        if main.between is not None and guided.between is not None:
            main = replace(main, between=main.between.index_copy(0, rows, guided.between))
        return replace(main, x0=main.x0.index_copy(0, rows, guided.x0))

    @property
    def only_other(self) -> bool:
        """Whether the formula is D_other alone."""
        return self.scale == 0 and not self.rescale and self.parallel == 1 and not math.isfinite(self.norm_limit)

    def other(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        """D_other."""
        raise NotImplementedError

    def both(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> tuple[Prediction, Prediction]:
        """D_main and D_other."""
        return self.inner(x_t, t, y), self.other(x_t, t, y)

    def combined(self, main: Prediction, other: Prediction) -> Prediction:
        """The guided prediction."""
        delta = main.x0 - other.x0
        if math.isfinite(self.norm_limit):
            delta = delta * (self.norm_limit / norms(delta)).clamp(max=1)
        if self.parallel != 1:
            along = inner_products(delta, main.x0) / inner_products(main.x0, main.x0).clamp(min=1e-12)
            delta = delta - (1 - self.parallel) * along * main.x0
        guided = replace(main, x0=main.x0 + (self.scale - 1) * delta)
        return self.rescaled(main, guided) if self.rescale else guided

    def rescaled(self, main: Prediction, guided: Prediction) -> Prediction:
        """The guided prediction with an output whose standard deviation over the image is that of D_main, or nearer."""
        ratio = deviations(main.output) / deviations(guided.output).clamp(min=1e-12)
        output = guided.output * (self.rescale * ratio + 1 - self.rescale)
        return replace(guided, x0=guided.c_skip * guided.x_t + guided.c_out * output)

    def calls(self, guess: Prediction) -> int:
        return 1 if self.scale == 1 or self.only_other or not self.inside(guess.alpha, guess.sigma) else 2


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(Contrast):
    """Classifier-free guidance: away from what the same network predicts without a label. Ho and Salimans 2022.

    null  labels -> the null labels, with which the network was trained too
    """

    null: Null

    def other(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        assert y is not None
        return self.inner(x_t, t, self.null(y))

    def both(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> tuple[Prediction, Prediction]:
        """Both branches by one call of the network with twice as many images."""
        assert y is not None
        times = t if t.ndim == 0 else torch.cat([t, t])
        found = self.inner(torch.cat([x_t, x_t]), times, torch.cat([y, self.null(y)]))
        return found.of(slice(len(x_t))), found.of(slice(len(x_t), None))


@dataclass(frozen=True, kw_only=True)
class Autoguided(Contrast):
    """Autoguidance: away from what a worse network predicts for the same images. Karras et al. 2024.

    worse   its denoiser, on the same schedule
    labels  whether it is given the labels
    """

    worse: AnyDenoiser
    labels: bool = True

    def other(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        return self.worse(x_t, t, y if self.labels else None)


@dataclass(frozen=True, kw_only=True)
class ClassifierGuided(Guided):
    """Classifier guidance: the score plus `scale` times the gradient of log p(y given x_t) with respect to x_t.

        x0 + scale (sigma^2 / alpha) grad log p(y given x_t)

    Dhariwal and Nichol 2021, section 4; for eps it is their equation 14, eps - scale sigma grad log p. By Bayes' rule
    the score of p(x_t) then becomes that of p(x_t) p(y given x_t)^scale, and at scale 1 that of p(x_t given y).

    Their algorithm 1 shifts the mean of an ancestral step by scale * variance * grad log p instead. With the variance
    `fixed_large`, beta_t for a step from t to t - 1, the two shifts are the same up to a factor:

        of_x0 (sigma_t^2 / alpha_t) = (alpha_s / alpha_t) beta_t = beta_t / sqrt(1 - beta_t)

    so the mean moves 1 / sqrt(1 - beta_t) times as far as theirs, a factor next to 1 at most levels. A learned variance
    stays as it is. Where alpha is 0, x_t holds nothing of the image, and nothing is added.

    gradient  (x_t, t, y) -> grad log p(y given x_t): that of a `NoisyClassifier`
    labels    whether the denoiser is given the labels too; an unconditional one is not
    """

    gradient: OfClass
    labels: bool = False

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        guess = self.inner(x_t, t, y if self.labels else None)
        if self.scale == 0 or not self.active(t).any():
            return guess
        assert y is not None
        return replace(guess, x0=self.pushed(guess, self.gradient(x_t, t, y)))


def norms(x: Tensor) -> Tensor:
    """|x| of each image, shaped to multiply it."""
    return per_image(x.flatten(1).norm(dim=1), x)


def deviations(x: Tensor) -> Tensor:
    """The standard deviation over the pixels of each image, shaped to multiply it."""
    return per_image(x.flatten(1).std(dim=1, correction=0), x)


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each image, shaped to multiply it."""
    return per_image((a * b).flatten(1).sum(1), a)
