"""Editing images: known pixels, noise between two noises, and the noise of which a sampler makes a given image.

None of it needs another sampler. SDEdit (Meng et al. 2022) needs no formula either: any sampler goes down from
x_t = alpha x0 + sigma z of the given image (`Schedule.diffuse`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Prediction
from diffuse.mathematics.ode import angles, probability_flow, rk4
from diffuse.mathematics.schedules import radius
from diffuse.mathematics.wrappers import Wrapper, of_images
from diffuse.system.errors import check

# A sampler with its options: (denoiser, x, times, y) -> x at each following time.
Walk = Callable[[AnyDenoiser, Tensor, Tensor, Tensor | None], Iterator[Tensor]]
STEPS = 16  # of the flow to noise, four evaluations each
CORRECTIONS = 8
HALF_A_GREY_LEVEL = 0.5 / 127.5  # of 255 between -1 and 1
PARALLEL = 1e-6  # sine of the angle below which two noises have the same direction


@dataclass(frozen=True)
class KnownPixels(Wrapper):
    """The predicted x0 with the known pixels of the images in it: inpainting with any sampler, by replacement.

        x0 <- image where known, x0 elsewhere

    eps, v and score follow from the changed x0, so that the known pixels of x_t are those of the image with noise.
    Every sampler ends on the predicted x0, so they are exact in the end. This is the replacement method (Song et al.
    2021 (SDE), appendix I.2; Ho et al. 2022 (video diffusion), section 3.1): the unknown pixels see the known
    ones through x_t alone, and fit them better with `samplers.repaint`.

    image  the images of the batch, [b, C, H, W] in [-1, 1], or one for all of them
    known  which pixels are known, bool and broadcastable to [b, 1, H, W]
    """

    image: Tensor
    known: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        guess = self.inner(x_t, t, y)
        known = self.known.expand(len(x_t), 1, *x_t.shape[2:])
        return replace(guess, x0=torch.where(known, self.image, guess.x0), known=known)

    def of(self, rows: Tensor) -> "KnownPixels":
        image, known = (part[rows.to(part.device)] if len(part) > 1 else part for part in (self.image, self.known))
        return replace(self, inner=of_images(self.inner, rows), image=image, known=known)


def slerp(start: Tensor, end: Tensor, part: Tensor) -> Tensor:
    """Spherical interpolation: Shoemake 1985; between noises Song et al. 2021 (DDIM), section 5.3 and appendix D.5.

        sin((1 - u) theta) / sin(theta) start + sin(u theta) / sin(theta) end
        cos(theta) = <start, end> / (|start| |end|)

    A straight line would pass noises that are too short: halfway between independent ones by a factor of sqrt(2). At
    u = 0 and 1 it is the ends, bit for bit. Where they have the same direction, the straight line. Raises Refused for
    opposite ones, between which there is no shortest way.

    start, end  [b, C, H, W]
    part        u in [0, 1] for each image, [b]
    """
    a, b = (each.flatten(1).double() for each in (start, end))
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    theta = torch.acos(cosine.clamp(-1, 1))
    near = torch.sin(theta) < PARALLEL
    check(not bool((near & (cosine < 0)).any()), "end", "another direction than opposite to start", "opposite")
    u, theta, sine = part.to(theta), theta.masked_fill(near, 1), torch.sin(theta).masked_fill(near, 1)
    first = torch.where(near, 1 - u, torch.sin((1 - u) * theta) / sine)
    second = torch.where(near, u, torch.sin(u * theta) / sine)
    shape = len(start), *[1] * (start.ndim - 1)
    return first.to(start).reshape(shape) * start + second.to(end).reshape(shape) * end


@torch.no_grad()
def to_noise(denoiser: AnyDenoiser, x0: Tensor, end: Tensor, y: Tensor | None = None, steps: int = STEPS) -> Tensor:
    """The noise at time `end` to which the probability-flow ODE takes images x0 [b, C, H, W].

    The step from t = 0 to t_min, the smallest time of the training, is of first order, that of DDIM's inversion (Song
    et al. 2021 (DDIM), section 5.4), with eps as it is predicted at t_min:

        x = alpha x0 + sigma eps(alpha x0, t_min)

    From there on it is the ODE of `mathematics.ode`, by the classical Runge-Kutta method of order 4, in steps that are
    evenly spaced in log-SNR.
    """
    schedule = denoiser.schedule
    ends = torch.stack([torch.tensor(schedule.t_min, dtype=torch.float64), end.cpu().double()])
    alpha, sigma = schedule.alpha_sigma(ends[0])
    x = alpha * x0
    x = x + sigma * denoiser(x, ends[0], y).eps
    field = probability_flow(denoiser, y, None)
    z, _, _ = rk4(field, x / radius(schedule, ends[0]), angles(schedule, ends, steps))
    return z * radius(schedule, ends[1])


@torch.no_grad()
def encode(
    denoiser: AnyDenoiser,
    walk: Walk,
    x0: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    corrections: int = CORRECTIONS,
    tolerance: float = HALF_A_GREY_LEVEL,
) -> Tensor:
    """The noise at times[0] of which a deterministic sampler makes these images again. walk: (denoiser, x, times, y).

    The exact flow U from images to noise is not the inverse of a sampler F with few steps, which would end at other
    images. What it misses is added, as in methods of deferred correction (Stetter 1978):

        x <- x + U(x0) - U(F(x)),   from x = U(x0)

    whose only fixed points are noises with U(F(x)) = U(x0). Each correction multiplies the error by about the relative
    error of F's steps. An image is done as soon as no pixel of F(x) is further than `tolerance` from x0, and at the
    latest after so many corrections; of all noises that were tried its best one is returned. So it does not depend on
    the other images of the batch. Pixels that the network makes of no noise stay wrong.
    """
    goal = to_noise(denoiser, x0, times[0], y)
    best, smallest = goal.clone(), torch.full([len(x0)], math.inf, device=x0.device, dtype=x0.dtype)
    rows, x = torch.arange(len(x0), device=x0.device), goal
    for correction in range(corrections + 1):
        part, labels = of_images(denoiser, rows), None if y is None else y[rows]
        *_, drawn = walk(part, x, times, labels)
        error = (drawn - x0[rows]).abs().flatten(1).amax(1)
        better = error < smallest[rows]
        best[rows[better]], smallest[rows[better]] = x[better], error[better]
        left = error > tolerance  # not where it is NaN
        rows, x, drawn, labels = rows[left], x[left], drawn[left], None if labels is None else labels[left]
        if correction == corrections or not len(rows):
            break
        x = x + goal[rows] - to_noise(of_images(denoiser, rows), drawn, times[0], labels)
    return best
