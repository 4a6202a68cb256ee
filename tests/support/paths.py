"""The paths from data to noise that exact answers are asked for on, each with alpha and sigma written out once more."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from diffuse.mathematics import predictions
from diffuse.mathematics.continuous import VE, VP, Flow
from diffuse.mathematics.predictions import PredictionType
from diffuse.mathematics.schedules import Schedule, TableSchedule
from diffuse.mathematics.tables import cosine, linear


class Path(NamedTuple):
    """A schedule, a prediction type defined up to its last time, and what the schedule has to say, in plain Python."""

    schedule: Schedule
    prediction: PredictionType
    alpha_sigma: Callable[[float], tuple[float, float]]
    prior_std: float = 1.0

    @property
    def forgets(self) -> bool:
        """Whether nothing of the image is left at T."""
        return self.alpha_sigma(1000)[0] == 0


def of_a_table(schedule: TableSchedule) -> Callable[[float], tuple[float, float]]:
    log_alpha_bar = torch.log1p(-schedule.beta).cumsum(0).tolist()
    return lambda t: (math.exp(log_alpha_bar[int(t)] / 2), math.sqrt(-math.expm1(log_alpha_bar[int(t)])))


def vp(t: float) -> tuple[float, float]:
    """Song et al. 2021, equation 33."""
    u = t / 1000
    log_alpha_bar = -(0.1 * u + (20 - 0.1) * u**2 / 2)
    return math.exp(log_alpha_bar / 2), math.sqrt(-math.expm1(log_alpha_bar))


def ve(t: float) -> tuple[float, float]:
    return 1.0, 0.02 * (100 / 0.02) ** ((t - 1) / 999) if t else 0.0


def flow(t: float) -> tuple[float, float]:
    return 1 - t / 1000, t / 1000


PATHS = {
    "linear": Path(linear(), predictions.eps, of_a_table(linear())),
    "cosine": Path(cosine(), predictions.eps, of_a_table(cosine())),
    "zero_terminal": Path(linear(zero_terminal_snr=True), predictions.v, of_a_table(linear(zero_terminal_snr=True))),
    "vp": Path(VP(), predictions.eps, vp),
    "ve": Path(VE(), predictions.eps, ve, prior_std=100),
    "flow": Path(Flow(), predictions.flow, flow),
}


on_every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
