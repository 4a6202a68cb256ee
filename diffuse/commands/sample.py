"""`diffuse sample`: draw images from a trained network."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.data.images import to_uint8
from diffuse.options.schema import SampleConfig, flat
from diffuse.runs.drawing import drawing_of
from diffuse.runs.history import add_to_history
from diffuse.runs.output import Output
from diffuse.runs.pictures import image_grid, save_png
from diffuse.runs.trained import load_for
from diffuse.system.errors import UserError
from diffuse.system.files import json_round_trip, short_path, write_atomic, write_json
from diffuse.system.progress import duration, log, log_cost

GRID_IMAGES = 256
LOG, FACTS = "sample.log", "samples.json"
MAY_DIFFER = (
    "device",
    "seconds",
    "checkpoint",
    "made_from",
    "evaluations",
)  # where, how long; of the checkpoint its hash counts
MANY = 250  # network calls for an image
LISTED = 4  # keys in a message


def run(config: SampleConfig, output: Output) -> dict[str, float]:
    """Draw n images from a checkpoint into a new folder of its run. Returns no values."""
    network = load_for(config)
    drawing, kind = drawing_of(network, config), network.kind
    facts = {"n": config.n, **drawing.record, **network.provenance, "made_from": network.sources}
    if (named := output.folder(network.home / "samples", config.name)) and is_finished(named, facts):
        log.info(f"{short_path(named)} is finished: {config.n:,} images are drawn, {short_path(named / 'grid.png')}")
        return {}
    with output.new_folder(network.home / "samples", config.name, LOG, is_unfinished) as folder:
        add_to_history(network.home, output.command, folder, network.device, config.trust)
        shutil.rmtree(folder / "images", ignore_errors=True)  # of the same command, if it was stopped
        what = f"{config.n:,} images of {kind.name} (step {network.step:,})"
        method = output.choices.get("sampler", drawing.sampler.name)
        adaptive = drawing.sampler.evaluations is None
        steps = f"adaptive steps of {method}" if adaptive else f"{len(drawing.sampler.times) - 1} steps of {method}"
        log.info(f"{what}: {steps} on {network.where}, into {short_path(folder)}")
        if drawing.sampler.cost > MANY:
            log.info(f"an image takes {drawing.sampler.cost:,} network calls; sampler=ddim takes 50")
        log_cost({"drawing": config.n * drawing.sampler.cost / network.images_per_second()})
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
        write_json(folder / FACTS, {**facts, "evaluations": round(drawing.evaluations, 1), **hardware})
        each = f", {drawing.evaluations:.0f} evaluations each" if adaptive else ""
        log.info(f"{config.n:,} images in {duration(seconds)}{each}: {short_path(folder / 'grid.png')}")
    return {}


def is_finished(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Whether these images were drawn into this folder before. Raises UserError where others were."""
    if not (folder / FACTS).is_file():
        return False
    try:
        before = dict(json.loads((folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{short_path(folder / FACTS)} cannot be read: {error}; choose another name=") from error
    then, now = (flat({key: value for key, value in each.items() if key not in MAY_DIFFER}) for each in (before, facts))
    now = json_round_trip(now)
    if changed := [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]:
        listed = ", ".join(f"{key} (was {then.get(key)}, now {now.get(key)})" for key in changed[:LISTED])
        raise UserError(f"{short_path(folder)} exists already, and differs in {listed}: choose another name=")
    return True


def is_unfinished(folder: Path) -> bool:
    """Whether sampling into this folder was stopped before its end, so that it may begin again."""
    return (folder / LOG).exists() and not (folder / FACTS).exists()


def write_npz(path: Path, images: Tensor, labels: Tensor | None) -> None:
    """Write arr_0, the images [n, H, W, C], and arr_1, the labels if any: the format of the ADM evaluator."""
    arrays = [images.permute(0, 2, 3, 1).numpy()] + ([] if labels is None else [labels.numpy()])
    write_atomic(path, lambda file: np.savez(file, *arrays), mode="wb")
