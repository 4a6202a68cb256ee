"""`diffuse sample`: draw images from a trained network."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.build import build, checked_options, locate
from diffuse.checkpoint import Trained, load_trained
from diffuse.datasets import ImageKind, to_uint8
from diffuse.denoiser import Denoiser
from diffuse.device import Device
from diffuse.errors import UsageError, pick
from diffuse.files import write_json, write_whole
from diffuse.job import Job, shown
from diffuse.pictures import grid, save_png
from diffuse.progress import Progress, duration, log
from diffuse.randomness import ImageNoise
from diffuse.samplers import SPACINGS, VARIANCES, time_grid
from diffuse.schedules import Schedule

GRID_IMAGES = 256


@dataclass(frozen=True)
class GridOptions:
    """The keys that every sampler has. steps: null means every level; clip: null means where pixels have a range."""

    steps: int | None
    spacing: str
    clip: bool | None


class Sampler:
    """A sampler with its time grid and options, as the config group `sampler` describes it."""

    def __init__(self, node: Mapping[str, Any], schedule: Schedule, kind: ImageKind, trust: Sequence[str]):
        self.node = dict(node)
        function = locate(node, "sampler", trust)
        common = {key: node.get(key) for key in GridOptions.__dataclass_fields__}
        own = {key: value for key, value in node.items() if key not in common and key not in ("_target_", "variance")}
        options = GridOptions(**checked_options(GridOptions, common, "sampler"))
        own = checked_options(function, own, "sampler")
        if "variance" in node:
            own["variance"] = pick(VARIANCES, "sampler.variance", node["variance"])
        if not 0 <= own.get("eta", 0) <= 1:
            raise UsageError(f"sampler.eta must be between 0 and 1, not {own['eta']}")
        try:
            self.times = time_grid(schedule, options.steps, pick(SPACINGS, "sampler.spacing", options.spacing))
        except ValueError as error:
            raise UsageError(f"sampler.{error}") from error
        self.clip = kind.bounded if options.clip is None else options.clip
        self.walk: Callable[..., Iterator[Tensor]] = partial(function, **own)

    @property
    def evaluations(self) -> int:
        """How often the network is called for each image."""
        return len(self.times) - 1


def draw(
    denoiser: Denoiser,
    sampler: Sampler,
    images: Sequence[int],
    seed: int,
    kind: ImageKind,
    device: Device,
    labels: Tensor | None = None,
    each_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """The images with these numbers, [n, C, H, W] float: image i depends on (seed, i) and the network alone."""
    noise = ImageNoise(seed, "sample", images)
    x_T = noise(torch.empty(len(images), *kind.shape, device=device.torch)) * denoiser.schedule.prior_std
    x = x_T
    for x in sampler.walk(denoiser, x_T, sampler.times, labels, noise=noise):  # noqa: B007
        each_step()
    return x


def image_labels(images: Sequence[int], kind: ImageKind, label: int | None, device: Device) -> Tensor:
    """The class of each image: `label`, or all classes in turn."""
    return torch.tensor([i % len(kind.classes) if label is None else label for i in images], device=device.torch)


class SampleJob:
    """All that `diffuse sample` needs, built and checked."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.device: Device = build(config["device"], "device", config["trust"])
        self.trained: Trained = load_trained(config["ckpt"], config["trust"])
        kind = self.trained.kind
        self.sampler = Sampler(config["sampler"], self.trained.schedule, kind, config["trust"])
        self.conditional = bool(self.trained.config["class_conditional"])
        self._check_label()
        net = self.device.place(self.trained.net)
        rows = self.device.rows(kind.size, config["batch_size"])
        self.batch_size = -(-config["batch_size"] // rows) * rows
        self.denoiser = Denoiser(self.device.network(net, rows), self.trained.schedule, clip=self.sampler.clip)

    def _check_label(self) -> None:
        label, classes = self.config["label"], self.trained.kind.classes
        if label is not None and not self.conditional:
            raise UsageError(f"label={label} needs a class-conditional network, and this one is not")
        if label is not None and not 0 <= label < len(classes):
            raise UsageError(f"label must be between 0 and {len(classes) - 1}, not {label}")

    def batches(self) -> Iterator[tuple[range, Tensor, Tensor | None]]:
        """(numbers, images, labels) of one batch after the other, with progress."""
        n, seed, kind = self.config["n"], self.config["seed"], self.trained.kind
        batches = -(-n // self.batch_size)
        with Progress("sample", batches * self.sampler.evaluations, "step") as progress:
            for start in range(0, n, self.batch_size):
                images = range(start, min(start + self.batch_size, n))
                labels = image_labels(images, kind, self.config["label"], self.device) if self.conditional else None
                x = draw(self.denoiser, self.sampler, images, seed, kind, self.device, labels, progress.advance)
                yield images, x.cpu(), None if labels is None else labels.cpu()


def run(config: Mapping[str, Any], job: Job) -> None:
    """Draw config["n"] images from a checkpoint into a new folder of its run."""
    sampling = SampleJob(config)
    with job.new_folder(sampling.trained.home / "samples", config["name"], "sample.log") as folder:
        log.info(
            "%s images of %s (step %s), %s steps of %s on %s, into %s",
            f"{config['n']:,}", sampling.trained.kind.name, f"{sampling.trained.step:,}", sampling.sampler.evaluations,
            sampling.sampler.node["_target_"].rpartition(".")[2], sampling.device, shown(folder),
        )  # fmt: skip
        started = time.monotonic()
        parts, labels = [], []
        for images, x, y in sampling.batches():
            if sampling.trained.kind.bounded:
                write_images(folder / "images", images, x)
            parts.append(to_uint8(x) if sampling.trained.kind.bounded else x)
            labels += [] if y is None else [y]
        seconds = time.monotonic() - started
        drawn = torch.cat(parts)
        save_png(folder / "grid.png", grid(drawn[:GRID_IMAGES]))
        write_npz(folder / "samples.npz", drawn, torch.cat(labels) if labels else None)
        facts = {
            "n": config["n"],
            "seed": config["seed"],
            "label": config["label"],
            "sampler": {**sampling.sampler.node, "steps": sampling.sampler.evaluations, "clip": sampling.sampler.clip},
            "network_evaluations": sampling.sampler.evaluations,
            "device": str(sampling.device),
            "seconds": round(seconds, 3),
            **sampling.trained.provenance,
        }
        write_json(folder / "samples.json", facts)
        log.info("%s images in %s: %s", f"{config['n']:,}", duration(seconds), shown(folder / "grid.png"))


def write_images(folder: Path, numbers: Sequence[int], images: Tensor) -> None:
    """Each image as a PNG named by its number; with channels that PNG cannot hold, only in samples.npz."""
    if images.shape[1] not in (1, 3):
        return
    folder.mkdir(exist_ok=True)
    for number, image in zip(numbers, to_uint8(images), strict=True):
        save_png(folder / f"{number:05d}.png", image)


def write_npz(path: Path, images: Tensor, labels: Tensor | None) -> None:
    """arr_0 the images [n, H, W, C], arr_1 the labels if there are any: the form that the ADM evaluator reads."""
    arrays = [images.permute(0, 2, 3, 1).numpy()] + ([] if labels is None else [labels.numpy()])
    write_whole(path, lambda file: np.savez(file, *arrays), mode="wb")
