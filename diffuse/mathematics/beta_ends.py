"""The first and last beta of published tables, for any number of levels. This module does not import torch."""

DDPM = (1e-4, 0.02)  # beta_1 and beta_T of Ho et al. 2020, for 1,000 levels
END_KEYS = ("beta_start", "beta_end")
ENDS = {"linear": DDPM, "quad": DDPM, "scaled_linear": (0.00085, 0.012), "sigmoid": DDPM}


def usual_ends(schedule: str, levels: int) -> tuple[float, float]:
    """beta_1 and beta_T for 1,000 levels times 1000 / levels: as little of the image is left at T for any number."""
    start, end = ENDS[schedule]
    return start * 1000 / levels, end * 1000 / levels
