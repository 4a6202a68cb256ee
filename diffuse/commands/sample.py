"""`diffuse sample`: draw images from a trained network."""

import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffuse.data.images import to_uint8
from diffuse.options.schema import SampleConfig
from diffuse.runs.drawing import drawing_of
from diffuse.runs.output import Output
from diffuse.runs.pictures import image_grid, save_png
from diffuse.runs.trained import load_for
from diffuse.system.files import short_path, write_atomic, write_json
from diffuse.system.progress import duration, log

GRID_IMAGES = 256
LOG, FACTS = "sample.log", "samples.json"


def run(config: SampleConfig, output: Output) -> dict[str, float]:
    """Draw n images from a checkpoint into a new folder of its run. Returns no values."""
    network = load_for(config)
    drawing, kind = drawing_of(network, config), network.kind
    with output.new_folder(network.home / "samples", config.name, LOG, is_unfinished) as folder:
        shutil.rmtree(folder / "images", ignore_errors=True)  # of the same command, if it was stopped
        what = f"{config.n:,} images of {kind.name} (step {network.step:,})"
        steps = f"{len(drawing.sampler.times) - 1} steps of {drawing.sampler.name}"
        log.info(f"{what}: {steps} on {network.where}, into {short_path(folder)}")
        started = time.monotonic()
        parts = []
        for numbers, x in drawing.batches(config.n, network.batch_size):
            parts.append(to_uint8(x) if kind.bounded else x)
            if kind.bounded and kind.channels in (1, 3):  # images that PNG cannot hold are in samples.npz only
                for number, image in zip(numbers, parts[-1], strict=True):
                    save_png(folder / "images" / f"{number:05d}.png", image)
        seconds = time.monotonic() - started
        drawn = torch.cat(parts)
        save_png(folder / "grid.png", image_grid(drawn[:GRID_IMAGES]))
        write_npz(folder / "samples.npz", drawn, drawing.condition.of_samples(range(config.n)))
        hardware = {"device": network.where, "seconds": round(seconds, 3)}
        write_json(folder / FACTS, {"n": config.n, **drawing.record, **hardware, **network.provenance})
        log.info(f"{config.n:,} images in {duration(seconds)}: {short_path(folder / 'grid.png')}")
    return {}


def is_unfinished(folder: Path) -> bool:
    """Whether sampling into this folder was stopped before its end, so that it may begin again."""
    return (folder / LOG).exists() and not (folder / FACTS).exists()


def write_npz(path: Path, images: Tensor, labels: Tensor | None) -> None:
    """Write arr_0, the images [n, H, W, C], and arr_1, the labels if any: the format of the ADM evaluator."""
    arrays = [images.permute(0, 2, 3, 1).numpy()] + ([] if labels is None else [labels.numpy()])
    write_atomic(path, lambda file: np.savez(file, *arrays), mode="wb")
