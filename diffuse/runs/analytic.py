"""E ||eps||^2 of a trained network at each noise level, for the analytic variance: estimated once, kept in its run."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from diffuse.data.arrays import Split
from diffuse.mathematics.denoiser import AnyDenoiser
from diffuse.mathematics.variances import Analytic
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.errors import UserError
from diffuse.system.files import sha256, write_json
from diffuse.system.progress import Progress, log
from diffuse.system.randomness import ImageNoise, generator
from diffuse.system.signals import raise_pending

IMAGES_PER_LEVEL = 256  # Bao et al. 2022 find that few are enough


def analytic(network: TrainedNetwork, times: Iterable[float]) -> Analytic:
    """The analytic variance of a trained network at these times, from stored estimates or from the training images.

    The file is named by the checkpoint's hash and by which of its weights the network has, so that the estimates of
    another network are never used. The estimate of a level depends on the network and the training images only, not on
    the time grid that needed it first.
    """
    path = network.home / "analytic" / f"{network.sha256[:16]}_{network.weights}.json"
    known = read_estimates(path)
    missing = [t for t in times if t > 0 and t not in known]
    if missing:
        train = training_images(network)
        count = min(IMAGES_PER_LEVEL, len(train.images))
        log.info(f"estimating E ||eps||^2 from {count} training images at each of {len(missing)} levels, into {path}")
        protocol = {"images_per_level": count, "data_sha256": train.sha256, **network.provenance}
        for t, value in estimates(network, train, count, missing):
            known[t] = value  # written one by one, so that a killed process loses one level at most
            write_json(path, {**protocol, "eps_squared": {str(t): known[t] for t in sorted(known)}})
    network.sources[str(path)] = sha256(path)
    return Analytic(network.schedule, known, 1.0 if network.kind.bounded else float("inf"))


def read_estimates(path: Path) -> dict[float, float]:
    """The estimates in a file of `analytic`, by time; none where there is no such file or it cannot be read."""
    try:
        return {float(t): float(value) for t, value in json.loads(path.read_text())["eps_squared"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def training_images(network: TrainedNetwork) -> Split:
    """The training split. Raises UserError where its images are not those that the network was trained on."""
    train, kind = network.data.train, network.kind
    if train.sha256 != network.data_sha256["train"]:
        raise UserError(
            f"variance=analytic is estimated from the training images, and those of {kind.name} have changed since "
            "the training (another hash): give their place (dataset.path, data_dir) or choose another variance"
        )
    return train


@torch.no_grad()
def estimates(network: TrainedNetwork, train: Split, count: int, times: list[float]) -> Iterator[tuple[float, float]]:
    """Each time with the mean of eps^2 over pixels, noise and `count` training images; in float32 on any device."""
    denoiser = network.denoiser(float32=True)
    with Progress("analytic", len(times) * count, "evaluation") as progress:
        for t in times:
            rows = np.sort(generator("analytic", repr(t)).permutation(len(train.images))[:count])
            total = 0.0
            for part in np.array_split(rows, -(-count // network.batch_size)):
                total += eps_squared(network, denoiser, train, part, t) * len(part)
                raise_pending()
                progress.advance(len(part))
            yield t, total / count


def eps_squared(network: TrainedNetwork, denoiser: AnyDenoiser, train: Split, rows: np.ndarray, t: float) -> float:
    """1 + the mean of eps^2 - noise^2 over these training images, each with noise drawn for it.

    The expectation is that of eps^2, and the variance is much smaller where the network predicts the noise well.
    """
    x0 = network.kind.to_network(torch.from_numpy(train.images[rows])).to(network.device.torch)
    time = torch.tensor(t, dtype=torch.float64)
    noise = ImageNoise(0, f"analytic {t!r}", rows.tolist())(x0)
    y = network.condition.of_split(train, rows, network.device.torch)
    eps = denoiser(denoiser.schedule.diffuse(x0, time, noise), time, y).eps
    return 1 + float((eps.square() - noise.square()).mean())
