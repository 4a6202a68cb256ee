"""`diffuse train`: fit a denoiser or a classifier to a data set, in a new run folder or in one that was stopped."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffuse.commands.self_contained import as_begun, self_contained, with_network_of
from diffuse.data.conditions import Condition, in_short
from diffuse.data.images import Dataset
from diffuse.foreign.weights import typed_in
from diffuse.networks.blocks import use_recomputation
from diffuse.networks.norm import use_norm
from diffuse.options.build import about, build
from diffuse.options.dataset import build_dataset
from diffuse.options.formulas import Formulas
from diffuse.options.network import build_network, condition_of
from diffuse.options.schema import TrainConfig, flat, plain
from diffuse.runs import checkpoint
from diffuse.runs import folder as runs
from diffuse.runs.checkpoint_files import BEST, CHECKPOINTS, all_in, step_of
from diffuse.runs.drawing import Drawing
from diffuse.runs.history import add_to_history
from diffuse.runs.hparams import EVENTS, tag, write_hparams
from diffuse.runs.output import Output
from diffuse.runs.pictures import gif_of_pngs
from diffuse.runs.record import read_record, refuse_changes, write_record
from diffuse.runs.sampler import Sampler
from diffuse.runs.scalars import SCORE_PREFIX, last_values
from diffuse.system.device import Device
from diffuse.system.errors import Terminated, UsageError, UserError
from diffuse.system.files import OUTPUTS, as_word, check_name, data_folder, run_path, short_path
from diffuse.system.joining import join, processes_of
from diffuse.system.progress import log
from diffuse.system.randomness import reseed
from diffuse.training.adamw import AdamW, betas_of
from diffuse.training.between import is_scored
from diffuse.training.cautions import (
    refuse_large_targets,
    refuse_more_steps_than_levels,
    refuse_recipe_of_other_data,
    refuse_scores_of_a_classifier,
    warn_of_schedule,
)
from diffuse.training.disk_space import cost_on_disk, refuse_small_disk
from diffuse.training.ema import EMA, PowerAverage
from diffuse.training.fitting import parts_for
from diffuse.training.forecast import smaller_training
from diffuse.training.helper import Helper, tell_others
from diffuse.training.initial import begin_with_given, freeze, given_weights
from diffuse.training.learning_rate import rate_of
from diffuse.training.loop import lead
from diffuse.training.setup import Training
from diffuse.training.shown import TOGETHER, AccuracyCurve, SampleGrids, Shown
from diffuse.training.threads import choice_for
from diffuse.training.trainer import NotFinite, Trainer
from diffuse.training.watching import Watcher


def run(config: TrainConfig, output: Output) -> dict[str, float]:
    """Begin a run, or continue the one in its folder. User errors are raised before anything is written.

    Returns the values at the last step, by name: scores of samples, if there are any, and the loss.
    """
    deadline = output.began + 3600 * (config.max_hours or math.inf)
    processes, helper = processes_of(config.device), Helper(build_training)
    return processes.command(lambda: helper.tasks, dict, lambda _: begin_or_resume(config, output, deadline))


def begin_or_resume(config: TrainConfig, output: Output, deadline: float) -> dict[str, float]:
    """What the process that leads does."""
    config = replace(config, name=config.name and check_name(config.name))
    refuse_recipe_of_other_data(output.choices)
    requested = self_contained(replace(config, resume=None))
    if config.resume:
        return resume(requested, run_path(config.resume), output, deadline)
    folder = output.folder(OUTPUTS, config.name) or output.folder_of_launch(OUTPUTS / output.filed_under)
    if folder and runs.is_run(folder):
        record = read_record(folder)  # the run may have been renamed since it began
        requested = replace(as_begun(requested, record, output.typed_keys), name=record.name)
        return resume(requested, folder, output, deadline)
    if folder and not output.sweep_folder:
        runs.refuse_inside_others(folder)
    if config.init.ckpt:
        kind = build_dataset(requested.dataset, data_folder(config.data_dir), config.trust).kind
        network = given_weights(requested.init, requested.foreign, requested.trust)
        requested = with_network_of(requested, network, kind, output.typed_keys)
    elif typed := typed_in(requested.foreign):
        raise UsageError(f"foreign.{next(iter(typed))} is about the weights of init.ckpt, which is not set")
    return begin(requested, folder, output, deadline)


def begin(config: TrainConfig, folder: Path | None, output: Output, deadline: float) -> dict[str, float]:
    """Train from the beginning, in this folder or, if None, in a new one named by the time."""
    config = with_parts(config, config.parts)
    training = build_training(config)
    begin_with_given(training)
    refuse_small_disk(training, folder or OUTPUTS)
    folder = folder or output.make_folder(OUTPUTS / output.filed_under)
    with runs.hold_run(folder):
        if runs.is_run(folder):
            raise UserError(f"{short_path(folder)} was just begun by another process; give the command again")
        write_record(folder, config)
        with output.log_into(folder, "train.log"):
            add_to_history(folder, output.command, folder, training.trainer.device, config.trust)
            return train(training, folder, output, deadline, None)


def resume(config: TrainConfig, folder: Path, output: Output, deadline: float) -> dict[str, float]:
    """Continue the run in this folder from its newest checkpoint, or from its beginning if it has none yet."""
    record = read_record(folder)
    refuse_changes(record, config, folder)
    with runs.hold_run(folder):
        saved = checkpoint.newest(folder / CHECKPOINTS)
        step = saved.content["step"] if saved else 0
        if saved:
            set_damaged_aside(saved.path)
        else:
            runs.refuse_lost_checkpoints(folder, max(config.checkpoint.every, record.checkpoint.every))
        watched = config.eval.every is None or is_scored(folder, step)
        if step >= config.steps and runs.grid_path(folder, step).exists() and watched:
            log.info(f"{short_path(folder)} is finished: {step:,} of {config.steps:,} steps are done")
            return last_values(folder)
        recorded = record.parts if config.grad_accumulation == record.grad_accumulation else None
        config = with_parts(config, recorded if config.parts in (None, record.parts) else config.parts)
        training = build_training(config)
        if saved:
            training.trainer.restore(saved)
        else:
            begin_with_given(training)
        refuse_small_disk(training, folder)
        with output.log_into(folder, "train.log"):
            add_to_history(folder, output.command, folder, training.trainer.device, config.trust)
            if config.steps != record.steps:
                write_record(folder, replace(record, steps=config.steps))
            source = f" ({saved.path.name})" if saved else ": no checkpoint was saved yet"
            log.info(f"resumed from step {step}{source}")
            return train(training, folder, output, deadline, saved)


def with_parts(config: TrainConfig, asked: int | None) -> TrainConfig:
    """The config with the number of parts of a batch, which the run records."""
    return replace(config, parts=parts_for(config.batch_size, join().count, asked, config.grad_accumulation))


def build_training(config: TrainConfig) -> Training:
    """The objects of a training, built from its config and checked."""
    trust, optim = config.trust, config.optim
    device: Device = build(config.device, "device", trust)
    data = build_dataset(config.dataset, data_folder(config.data_dir), trust)
    formulas = Formulas.of(config, data.kind, trust)
    if formulas.classifies:
        refuse_scores_of_a_classifier(config.eval.every)
    else:
        refuse_more_steps_than_levels(config.sampler, formulas.schedule)
        refuse_large_targets(formulas)
    condition = condition_of(config, data.kind)
    reseed(config.seed, "weights")
    net = device.place(build_network(config, data.kind, trust))
    freeze(net, config.init.freeze)
    ema, averages = EMA(net, config.ema.decay), [PowerAverage(net, length) for length in config.ema.lengths]
    with about("device"):
        use_norm(net, device.norm or "torch")
    if device.recompute:
        use_recomputation(net)
    if device.worth_compiling(config.steps):
        net.compile()
    shown, watcher = shown_of(config, formulas, data, condition, ema.net, device)
    progress = torch.zeros((), device=device.torch)
    trainer = Trainer(
        net,
        formulas.training_loss(net, device, progress),
        data,
        formulas.time_sampling,
        AdamW(net.parameters(), optim.lr, betas_of(optim), optim.weight_decay),
        ema,
        averages=averages,
        batch_size=config.batch_size,
        parts=config.parts or config.grad_accumulation,
        seed=config.seed,
        rate=rate_of(optim, config.steps),
        clip=optim.clip,
        noise=formulas.noise,
        augment=config.augment.probability,
        progress=progress,
        steps=config.steps,
        condition=condition,
        device=device,
    )
    return Training(config, trainer, shown, watcher, choice_for(trainer), formulas.where(device))


def shown_of(
    config: TrainConfig, formulas: Formulas, data: Dataset, condition: Condition, averaged: nn.Module, device: Device
) -> tuple[Shown, Watcher | None]:
    """What is shown of a step, and what scores its samples, if that is asked for."""
    if formulas.classifies:
        classifier = formulas.classifier(averaged, device, device.rows(data.kind.padded_size, TOGETHER))
        return AccuracyCurve(classifier, data, condition, device.torch), None
    sampler = Sampler(config.sampler, formulas, data.kind, config.trust)
    denoiser = formulas.denoiser(averaged, device, device.rows(data.kind.padded_size, config.images.count))
    drawing = Drawing(sampler.wrap(denoiser), sampler, data.kind, device, condition, config.seed)
    watches = config.eval.every is not None and not device.processes.rank
    watcher = Watcher(config, data, drawing) if watches else None
    return SampleGrids(drawing, config.images.count), watcher


def set_damaged_aside(newest: Path) -> None:
    """Rename the damaged checkpoints after the newest readable one, so that they are not taken for newer ones."""
    for path in all_in(newest.parent):
        if step_of(path) > step_of(newest):
            path.rename(path.with_suffix(".damaged"))
    checkpoint.point_to(newest)


def train(
    training: Training,
    folder: Path,
    output: Output,
    deadline: float,
    saved: checkpoint.Stored | None,
) -> dict[str, float]:
    """Train, and log what is trained and what can be done next. saved: the checkpoint that is continued from."""
    config, trainer = training.config, training.trainer
    trusted = [f"trust=[{','.join(config.trust)}]"] if config.trust else []
    again = shlex.join(["diffuse", "train", as_word("resume", short_path(folder)), *trusted])
    log_setup(training, folder, output)
    tell_others(training, folder, saved)
    recorded: Mapping[str, Any] = saved.content if saved else {}
    try:
        lead(training, folder, deadline, recorded, "" if trainer.step else smaller_training(output))
    except NotFinite as failure:
        raise keep_failure(training, folder, failure.step) from failure
    except (KeyboardInterrupt, Terminated):
        kept = all_in(folder / CHECKPOINTS)
        at = f"step {step_of(kept[-1])} is saved" if kept else "nothing was saved yet"
        log.info(f"stopped, {at}; continue with: {again}")
        raise
    values = last_values(folder)
    grids = [path for path in sorted(folder.glob("images/step_*.png")) if path.stem[5:].isdigit()]
    gif_of_pngs(folder / "images" / f"{training.shown.name}.gif", grids)
    if trainer.step < config.steps:
        log.info(f"stopped after max_hours={config.max_hours}, step {trainer.step} is saved; continue with: {again}")
        return values
    summary = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    log.info(f"done, {summary}; {training.shown.name}: {short_path(runs.grid_path(folder, trainer.step))}")
    if (best := folder / CHECKPOINTS / BEST).exists() and config.eval.every:
        log.info(f"these values are from the last step; the checkpoint with the best score is ckpt={short_path(best)}")
    chosen = {key: output.choices[key] for key in output.typed_keys if key in output.choices}
    scores = [tag(SCORE_PREFIX + name) for name in values if name != "loss"]
    write_hparams(folder / EVENTS, {**flat(plain(config)), **chosen}, output.typed_keys, ["loss", *scores])
    ckpt = shlex.join([as_word("ckpt", short_path(folder)), *trusted])
    if config.classifies:
        of_guidance = shlex.join(["guidance=classifier", as_word("guidance.ckpt", short_path(folder)), *trusted])
        log.info(f"next: diffuse sample ckpt=RUN {of_guidance}, with a RUN on the same images and schedule")
    else:
        log.info(f"next: diffuse sample {ckpt} sampler=auto   or   diffuse eval {ckpt}")
    return values


def log_setup(training: Training, folder: Path, output: Output) -> None:
    """Log the data, the network, the device, the disk space that checkpoints take, and what is unusual."""
    config, trainer, kind = training.config, training.trainer, training.trainer.data.kind
    parameters = sum(weight.numel() for weight in trainer.net.parameters())
    images = f"{len(trainer.data.train.images):,} images of {kind.in_words}"
    border = f" (with a border of {kind.pad})" if kind.pad else ""
    several = f", {count} processes" if (count := trainer.processes.count) > 1 else ""
    several += f", each batch in {trainer.parts} parts" if trainer.parts > 1 else ""
    log.info(f"run folder: {short_path(folder)}")
    log.info(f"{kind.name}: {images}{border}; {parameters:,} parameters; {training.where}{several}")
    if config.class_conditional:
        log.info(f"classes in their order, from 0: {in_short(kind.classes)}")
    log.info(cost_on_disk(training, folder))
    if not trainer.step and (advice := training.shown.advice(output.typed_keys)):
        log.info(advice)
    warn_of_schedule(trainer.time_sampling.schedule)
    if config.optim.warmup > config.steps:
        warmup = f"optim.warmup={config.optim.warmup} is longer than steps={config.steps}"
        log.warning(f"{warmup}: the learning rate never reaches optim.lr")


def keep_failure(training: Training, folder: Path, step: int) -> UserError:
    """Write failure.pt, the failed step with the state before it; returns the error to raise."""
    path = folder / "failure.pt"
    checkpoint.write(path, step, {**training.content(), **training.trainer.failure(step)})
    return UserError(
        f"the loss or gradient of step {step} is NaN or infinite. The state before it, its images, levels and\n"
        f"noise are in {short_path(path)}; scripts/replay_failure.py computes the step again.\n"
        "Lower optim.lr or optim.clip in a new run, or set device.precision=float32 if it was bfloat16"
    )
