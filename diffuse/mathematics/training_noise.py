"""The noise that training images are mixed with: standard normal, or chosen and perturbed as two papers propose."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffuse.mathematics.schedules import Schedule, per_image
from diffuse.system.errors import check


@dataclass(frozen=True)
class TrainingNoise:
    """How the noise of a training step is drawn.

    nearest       of so many candidates the one nearest to the image is taken: Li et al. 2024 (immiscible diffusion),
                  algorithm 1 for one image. The mixture of image and noise then crosses less of the others; the noise
                  is no longer exactly normal, so no bound is trained with it
    perturbation  gamma of Ning et al. 2023 (input perturbation), equation 9: the network sees the noise eps + gamma xi,
                  with xi standard normal, and has to predict eps, as it meets its own errors while sampling
    """

    nearest: int = 1
    perturbation: float = 0.0

    def __post_init__(self) -> None:
        check(self.nearest >= 1, "nearest", "at least 1", self.nearest)
        check(0 <= self.perturbation < 1, "perturbation", "0 or more, and below 1", self.perturbation)

    @property
    def is_usual(self) -> bool:
        """Whether it is standard normal noise, as the bound has it."""
        return self.nearest == 1 and self.perturbation == 0

    def draw(self, x0: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """The images [b, C, H, W] at times t [b] and their noise, from torch's generator.

        With a perturbation these are the image and the noise of which x_t and eps are made:

            x_t = alpha x0 + sigma (eps + gamma xi) = alpha (x0 + gamma sigma / alpha xi) + sigma eps
        """
        noise = self.nearest_of_candidates(x0)
        if self.perturbation:
            alpha, sigma = schedule.alpha_sigma(per_image(t, x0))
            x0 = x0 + self.perturbation * sigma / alpha * torch.randn_like(x0)
        return x0, noise

    def nearest_of_candidates(self, x0: Tensor) -> Tensor:
        """Standard normal noise for each image, or the nearest of several."""
        if self.nearest == 1:
            return torch.randn_like(x0)
        candidates = torch.randn(self.nearest, *x0.shape, dtype=x0.dtype, device=x0.device)
        distances = (candidates - x0).flatten(2).square().sum(2)
        return candidates[distances.argmin(0), torch.arange(len(x0), device=x0.device)]


NORMAL = TrainingNoise()
