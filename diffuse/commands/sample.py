"""`diffuse sample`: draw images from a trained network, from noise or from what is to be edited."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuse.options.schema import SampleConfig, flat
from diffuse.options.score_names import EVALUATIONS, SECONDS
from diffuse.runs.drawing import Drawing, drawing_of, noises
from diffuse.runs.editing import Encoded, Encoding, editing_of
from diffuse.runs.given import write_noise
from diffuse.runs.history import add_to_history
from diffuse.runs.output import Output
from diffuse.runs.pictures import save_gif, save_png
from diffuse.runs.recommended import faster_sampler
from diffuse.runs.trained import TrainedNetwork, load_for
from diffuse.runs.trajectory import Trajectory
from diffuse.scoring.feature_rows import Rows
from diffuse.system.errors import Terminated, UserError
from diffuse.system.files import json_round_trip, remove_leftovers, short_path, write_atomic, write_json
from diffuse.system.joining import processes_of
from diffuse.system.progress import duration, log, log_cost

GRID_IMAGES = 256
LOG, FACTS = "sample.log", "samples.json"
# Where, how long, at what cost, and what follows from the sampler; of the checkpoint its hash counts.
OFF_BY = "off_by_grey_levels"  # what encoding and drawing again left of the difference to the given images
MAY_DIFFER = ("device", "processes", "seconds", SECONDS, "checkpoint", "made_from", EVALUATIONS, "order", OFF_BY)
LISTED = 4  # keys in a message
MOST_SHOWN = 64  # images whose way is shown, unless `trajectory` says so
MOST_FILES = 1000  # images that are written as files of their own, unless `save` says so
UNFINISHED, IMAGES, NOISE = "unfinished", "images", "noise"  # the folder of what is there so far, and its arrays
FRAME_SECONDS, LAST_SECONDS = 0.2, 1.0  # that an image between two seeds is shown, and the last one


def run(config: SampleConfig, output: Output) -> dict[str, float]:
    """Draw n images from a checkpoint into a new folder of its run, or go on in it. Returns what an image cost.

    `edit.*` says what they begin with in place of noise of their own.

    What is drawn is kept in a growing array on disk until all are there: memory does not depend on n, and a sampling
    that was killed goes on after the last whole image.
    """

    def lead(built: tuple[TrainedNetwork, Drawing]) -> dict[str, float]:
        network, drawing = built
        return draw(replace(config, n=config.n or drawing.editing.count), network, drawing, output)

    return processes_of(config.device).command(partial(build, config), lambda built: built[1].tasks, lead)


def build(config: SampleConfig) -> tuple[TrainedNetwork, Drawing]:
    """The trained network, and what draws with it, checked."""
    network = load_for(config)
    return network, drawing_of(network, config, editing_of(config.edit, config.n, network))


def draw(config: SampleConfig, network: TrainedNetwork, drawing: Drawing, output: Output) -> dict[str, float]:
    """Draw into a new folder of the run, or go on in it: what the process that leads does."""
    facts = {"n": config.count, "save": kinds_of_files(config), **drawing.record, **network.provenance}
    facts |= {"made_from": network.sources}
    parent = network.home / "samples"
    if (named := output.folder(parent, config.name) or output.folder_of_launch(parent)) and is_finished(named, facts):
        shutil.rmtree(named / UNFINISHED, ignore_errors=True)  # of a kill at the very end
        said = f"{short_path(named)} is finished: {config.count:,} images are drawn"
        log.info(f"{said}, {short_path(named / 'grid.png')}")
        return cost_of(named)
    with output.new_folder(network.home / "samples", config.name, LOG, is_unfinished) as folder:
        add_to_history(network.home, output.command, folder, network.device, config.trust)
        drawn = Rows(folder / UNFINISHED, {key: facts[key] for key in facts.keys() - {*MAY_DIFFER}})
        known, started = drawn.count(IMAGES), time.monotonic()
        if not known:
            remove_images(folder)  # of another command that was stopped
        remove_leftovers(folder / "images")
        announce(network, drawing, config, output, folder, known)
        drawing = draw_missing(network, drawing, config, output, folder, drawn)
        seconds, images = time.monotonic() - started, drawn[IMAGES]
        show(drawing, torch.from_numpy(images).permute(0, 3, 1, 2), folder)
        if "npz" in kinds_of_files(config):
            write_npz(folder / "samples.npz", images, drawing.condition.arrays(config.count))
        hardware = {"device": network.where, "processes": drawing.device.processes.count}
        hardware |= {"seconds": round(seconds, 3)}
        if known < config.count:
            hardware[SECONDS] = round(seconds / (config.count - known), 6)  # of those drawn now
        found = finish_encoding(drawing, drawn, facts, folder) if isinstance(drawing.editing, Encoded) else {}
        write_json(folder / FACTS, {**facts, EVALUATIONS: drawing.evaluations, **found, **hardware})
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        took = drawing.evaluations if drawing.sampler.adaptive else None
        each = f", {took:.0f} evaluations each" if took else ""
        log.info(f"{config.count - known:,} images in {duration(seconds)}{each}: {short_path(folder / 'grid.png')}")
    return cost_of(folder)


def remove_images(folder: Path) -> None:
    """Remove whatever shows or holds images of a sampling."""
    shutil.rmtree(folder / "images", ignore_errors=True)
    files = [folder / name for name in ("samples.npz", "grid.png", "noise.npz", "interpolation.gif")]
    for path in [*files, *folder.glob("trajectory.*")]:
        path.unlink(missing_ok=True)


def show(drawing: Drawing, images: torch.Tensor, folder: Path) -> None:
    """Write grid.png, and interpolation.gif between seeds. images [n, C, H, W]."""
    picture = drawing.editing.picture(images)
    save_png(folder / "grid.png", drawing.picture(images[:GRID_IMAGES]) if picture is None else picture)
    if film := drawing.editing.film(images):
        save_gif(folder / "interpolation.gif", film, FRAME_SECONDS, LAST_SECONDS)


def finish_encoding(drawing: Drawing, drawn: Rows, facts: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write noise.npz, and report how near its images are to those that were given."""
    assert isinstance(drawing.editing, Encoded)
    off = drawing.editing.error(drawn[IMAGES])
    made_with = {key: facts[key] for key in ("checkpoint_sha256", "sampler", "label", "edit")}
    made_with |= {"guidance": facts.get("guidance")}
    write_noise(
        folder / "noise.npz", drawn[NOISE], drawing.sampler.start, drawing.denoiser.schedule.prior_std, made_with
    )
    log.info(
        f"drawn again, the images are off by {off['mean']:.2g} of 255 grey levels in the mean, {off['largest']} at the "
        f"most; edit.noise={short_path(folder / 'noise.npz')} begins with their noise"
    )
    return {OFF_BY: off}


def draw_missing(
    network: TrainedNetwork, drawing: Drawing, config: SampleConfig, output: Output, folder: Path, drawn: Rows
) -> Drawing:
    """Draw the images that are not there yet, and return what drew them. Logs how to continue where a signal stops it.

    Where images are encoded, their noise is found first.
    """
    editing, size = drawing.editing, network.batch_size
    try:
        if isinstance(editing, Encoding):
            drawn.extend(config.count, [NOISE], partial(noise_of, drawing, config.count, size))
            drawing = replace(drawing, editing=editing.from_noise(drawn[NOISE]))
        way = trajectory_of(drawing, config, size) if not drawn.count(IMAGES) else None
        drawn.extend(config.count, [IMAGES], partial(batches_of, drawing, config, size, folder / "images", way))
    except (KeyboardInterrupt, Terminated):
        again = output.command if config.name else f"{output.command} name={folder.name}"
        advice = "" if output.sweep_folder else f"; continue with: {again}"  # a sweep prints its own
        log.info(f"stopped, {drawn.count(IMAGES):,} of {config.count:,} images are drawn{advice}")
        raise
    return drawing


def noise_of(drawing: Drawing, n: int, size: int, first: int) -> Iterator[dict[str, np.ndarray]]:
    """The noise [b, C, H, W] of each batch of given images, from image `first` on."""
    for noise in noises(drawing, n, size, first):
        yield {NOISE: noise.numpy()}


def cost_of(folder: Path) -> dict[str, float]:
    """Evaluations and seconds an image, as they are recorded."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return {name: float(facts[name]) for name in (EVALUATIONS, SECONDS) if facts.get(name)}


def announce(
    network: TrainedNetwork, drawing: Drawing, config: SampleConfig, output: Output, folder: Path, known: int
) -> None:
    """Say what is drawn, how, where to, and how long it will take; `known` images are there."""
    sampler = drawing.sampler
    what = f"{config.count:,} images of {network.kind.name} (step {network.step:,})"
    log.info(f"{what}: {drawing.summary} on {network.where}, into {short_path(folder)}")
    if known:
        log.info(f"continuing after {known:,} of {config.count:,} images")
    elif faster := faster_sampler(sampler, output.typed_keys):
        log.info(faster)
    log_cost({"drawing": drawing.seconds(network, config.count - known)})


def kinds_of_files(config: SampleConfig) -> list[str]:
    """The files that are asked for: png, a file for each image, and npz, one for all."""
    return config.save or (["png", "npz"] if config.count <= MOST_FILES else ["npz"])


def trajectory_of(drawing: Drawing, config: SampleConfig, batch_size: int) -> Trajectory | None:
    """What keeps the way of the first batch, if it is asked for, and if the number of evaluations is known."""
    wanted = config.count <= MOST_SHOWN if config.trajectory is None else config.trajectory
    if not wanted or not drawing.sampler.evaluations:
        return None
    return Trajectory(drawing.kind, drawing.sampler.evaluations, min(config.count, batch_size))


def batches_of(
    drawing: Drawing, config: SampleConfig, batch_size: int, folder: Path, way: Trajectory | None, first: int
) -> Iterator[dict[str, np.ndarray]]:
    """The images [b, H, W, C] of each batch from image `first` on; also as PNG files in the folder, if asked for."""
    kind = drawing.kind
    as_files = "png" in kinds_of_files(config) and kind.eight_bit and kind.channels in (1, 3)  # what PNG can hold
    for numbers, images in drawing.batches(config.count, batch_size, first, way):
        for number, image in zip(numbers, images, strict=True) if as_files else ():
            save_png(folder / f"{number:05d}.png", image)
        if way and not first and numbers.start == 0:
            way.save(folder.parent)
        yield {IMAGES: images.permute(0, 2, 3, 1).numpy()}


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


def write_npz(path: Path, images: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arr_0, the images [n, H, W, C], and arrays of their condition: the format of the ADM evaluator."""
    named: dict[str, Any] = {"arr_0": images, **arrays}
    write_atomic(path, lambda file: np.savez(file, **named), mode="wb")
