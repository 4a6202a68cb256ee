"""`diffuse train`: fit a denoiser to a data set, into a run folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuse import checkpoint
from diffuse.job import OUTPUTS, Job, shown
from diffuse.pictures import grid
from diffuse.progress import Progress, duration, log
from diffuse.run import Run, as_yaml, read_record, refuse_changes, write_record
from diffuse.trainer import Trainer

WARMING_STEPS, MEASURED_STEPS = 5, 25


def train(trainer: Trainer, folder: Path) -> float:
    """Train into the folder until config["steps"] steps are done; returns the last loss reported."""
    config, start = trainer.config, trainer.step
    steps, batch_size, last_loss = config["steps"], config["batch_size"], math.nan
    with Run(folder, start) as run, Progress("train", steps, "step", start, batch_size, "images") as progress:
        if start == 0:
            run.text("config", as_yaml(config))
            run.picture("forward_process", trainer.forward_picture(), 0, "forward_process.png")
        while trainer.step < steps:
            trainer.advance()
            progress.advance()
            step, done = trainer.step, trainer.step == steps
            if step == start + WARMING_STEPS < steps:
                trainer.device.synchronize()
                progress.count_from_here()
            if step == min(start + MEASURED_STEPS, steps):
                trainer.device.synchronize()
                forecast(progress, steps, batch_size)
            if step % config["log"]["every"] == 0 or done:
                trainer.refuse_nonsense()
                values = trainer.report()
                last_loss = values["loss"]
                speed = progress.per_second_since_last_asked() * batch_size
                run.scalars(step, {**values, "images_per_second": speed})
                progress.tell({"loss": f"{last_loss:.4f}"})
            if step % config["images"]["every"] == 0 or done:
                with progress.paused():
                    run.picture("samples", grid(trainer.sample_images()), step, f"step_{step:08d}.png")
            if step % config["checkpoint"]["every"] == 0 or done:
                with progress.paused():
                    trainer.refuse_nonsense()
                    run.save_checkpoint(step, trainer.state(), config["checkpoint"]["keep"])
    return last_loss


def forecast(progress: Progress, steps: int, batch_size: int) -> None:
    """Say how fast it goes and how long it will take, from the first steps."""
    left = (steps - progress.done) / progress.per_second()
    speed = f"{progress.per_second() * batch_size:,.0f} images/s"
    log.info(f"{speed}: {steps - progress.done:,} steps will take about {duration(left)}")


def run(config: Mapping[str, Any], job: Job) -> float | None:
    """Begin a run or continue one, as the config says. Whatever is wrong is said before anything is written."""
    if config["resume"]:
        return resume(config, Path(config["resume"]), job)
    trainer = Trainer(config)
    parent = OUTPUTS if config["name"] else OUTPUTS / job.filed_under
    otherwise = ", or continue it with resume={folder}"
    with job.new_folder(parent, config["name"], "train.log", otherwise) as folder:
        write_record(folder, config)
        return introduce_and_train(trainer, folder)


def resume(config: Mapping[str, Any], folder: Path, job: Job) -> float | None:
    """Continue the run in this folder from its newest checkpoint, or from its beginning if it has none yet."""
    folder, config = folder.expanduser(), {**config, "resume": None}
    refuse_changes(read_record(folder), config, folder)
    path = checkpoint.newest(folder / checkpoint.FOLDER)
    content = checkpoint.read(path) if path else {"step": 0}
    if content["step"] >= config["steps"]:
        log.info(f"{shown(folder)} is finished: {content['step']:,} of {config['steps']:,} steps are done")
        return None
    trainer = Trainer(config)
    if path:
        trainer.load(content)
    with job.logged(folder, "train.log"):
        write_record(folder, config)
        log.info(f"resumed from step {trainer.step}" + (f" ({path.name})" if path else ": no checkpoint was saved yet"))
        return introduce_and_train(trainer, folder)


def introduce_and_train(trainer: Trainer, folder: Path) -> float:
    """Say what is about to happen, train, and say what can be done next."""
    config, kind = trainer.config, trainer.data.kind
    images = f"{len(trainer.data.train.images):,} images of {kind.channels} x {kind.size} x {kind.size}"
    log.info(f"run folder: {shown(folder)}")
    log.info(f"{kind.name}: {images}; {trainer.parameters:,} parameters; {trainer.device}")
    try:
        loss = train(trainer, folder)
    except KeyboardInterrupt:
        log.info(f"interrupted at step {trainer.step}; continue with: diffuse train resume={shown(folder)}")
        raise
    last = folder / "images" / f"step_{config['steps']:08d}.png"
    log.info(f"done, loss {loss:.4f}; samples: {shown(last)}")
    ckpt = f"ckpt={shown(folder)}" + (f" trust=[{','.join(config['trust'])}]" if config["trust"] else "")
    log.info(f"next: diffuse sample {ckpt}   or   diffuse eval {ckpt}")
    return loss
