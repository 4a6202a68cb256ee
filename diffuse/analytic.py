"""E ||eps||^2 of a trained network at each level, for the analytic variance: estimated once, kept in the run folder."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from diffuse.denoiser import Denoiser
from diffuse.files import write_json
from diffuse.prepared import Prepared
from diffuse.progress import Progress, log
from diffuse.randomness import ImageNoise, generator
from diffuse.variances import Analytic

FOLDER = "analytic"
IMAGES = 256  # for each level; Bao et al. 2022, figure 2, find little difference between 10 and 50,000


def analytic(prepared: Prepared, times: Iterable[float]) -> Analytic:
    """The analytic variance of a trained network for these times, from what is known or from the training images.

    The file is named by the checkpoint's hash, so that no other network's numbers are taken for its own. A level's
    number depends on the network and on the training images alone, not on the grid that first asked for it.
    """
    path = prepared.trained.home / FOLDER / f"{prepared.trained.sha256[:16]}.json"
    known = read(path)
    missing = [t for t in times if t > 0 and t not in known]
    if missing:
        log.info(f"estimating E ||eps||^2 from {IMAGES} training images at each of {len(missing)} levels, into {path}")
        known |= estimated(prepared, missing)
        protocol = {"images_per_level": IMAGES, "of_pixels": "eps^2", **prepared.trained.provenance}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**protocol, "eps_squared": {str(t): known[t] for t in sorted(known)}})
    return Analytic(prepared.trained.schedule, known, 1.0 if prepared.kind.bounded else float("inf"))


def read(path: Path) -> dict[float, float]:
    """The numbers in a file of `analytic`; none where there is no such file, or what is there is of no use."""
    try:
        content = json.loads(path.read_text())
        if content["images_per_level"] != IMAGES:
            return {}
        return {float(t): float(value) for t, value in content["eps_squared"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


@torch.no_grad()
def estimated(prepared: Prepared, times: list[float]) -> dict[float, float]:
    """The mean of eps^2 over pixels, training images and noise, at each time."""
    denoiser, found = prepared.denoiser(clip=False), {}
    images = len(prepared.data.train.images)
    count = min(IMAGES, images)
    with Progress("analytic", len(times) * count, "evaluation") as progress:
        for t in times:
            rows = np.sort(generator("analytic", repr(t)).permutation(images)[:count])
            total = 0.0
            for part in np.array_split(rows, -(-count // prepared.batch_size)):
                total += eps_squared(prepared, denoiser, part, t) * len(part)
                progress.advance(len(part))
            found[t] = total / count
    return found


def eps_squared(prepared: Prepared, denoiser: Denoiser, rows: np.ndarray, t: float) -> float:
    """The mean of eps^2 over these training images, each with noise of its own."""
    train = prepared.data.train
    x0 = prepared.kind.to_network(torch.from_numpy(train.images[rows])).to(prepared.device.torch)
    time = torch.tensor(t, dtype=torch.float64)
    x_t = denoiser.diffuse(x0, time, ImageNoise(0, f"analytic {t!r}", rows.tolist())(x0))
    return float(denoiser(x_t, time, prepared.labels(train, rows)).eps.square().mean(dtype=torch.float32))
