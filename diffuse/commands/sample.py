"""`diffuse sample`: draw images from a trained network."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.data.images import to_uint8
from diffuse.runs.drawing import Drawing
from diffuse.runs.output import Job
from diffuse.runs.pictures import grid, save_png
from diffuse.system.files import shown, write_json, write_whole
from diffuse.system.progress import duration, log

GRID_IMAGES = 256
LOG, FACTS = "sample.log", "samples.json"


def run(config: Mapping[str, Any], job: Job) -> dict[str, float]:
    """Draw config["n"] images from a checkpoint into a new folder of its run. There is nothing to report by name."""
    sampling = Drawing(config)
    trained, sampler, kind = sampling.trained, sampling.sampler, sampling.kind
    with job.new_folder(trained.home / "samples", config["name"], LOG, is_unfinished) as folder:
        shutil.rmtree(folder / "images", ignore_errors=True)  # of the same command, stopped halfway
        what = f"{config['n']:,} images of {kind.name} (step {trained.step:,})"
        log.info(f"{what}: {len(sampler.times) - 1} steps of {sampler.name} on {sampling.where}, into {shown(folder)}")
        started = time.monotonic()
        parts, labels = [], []
        for images, x, y in sampling.batches(config["n"]):
            if kind.bounded:
                write_images(folder / "images", images, x)
            parts.append(to_uint8(x) if kind.bounded else x)
            labels += [] if y is None else [y]
        seconds = time.monotonic() - started
        drawn = torch.cat(parts)
        save_png(folder / "grid.png", grid(drawn[:GRID_IMAGES]))
        write_npz(folder / "samples.npz", drawn, torch.cat(labels) if labels else None)
        facts = {
            "n": config["n"],
            "seed": config["seed"],
            "label": config["label"],
            "sampler": sampler.record,
            "network_evaluations": sampler.evaluations,
            "device": sampling.where,
            "seconds": round(seconds, 3),
            **trained.provenance,
        }
        write_json(folder / FACTS, facts)
        log.info(f"{config['n']:,} images in {duration(seconds)}: {shown(folder / 'grid.png')}")
    return {}


def is_unfinished(folder: Path) -> bool:
    """Whether sampling into this folder was stopped before its end, so that it may begin again."""
    return (folder / LOG).exists() and not (folder / FACTS).exists()


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
