"""`diffuse eval`: the likelihood of the test split under a trained network, and its samples against real images."""

import time
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from diffuse.options.schema import EvalConfig, plain
from diffuse.options.score_names import EVALUATIONS, LIKELIHOODS, SAMPLE_SCORES
from diffuse.runs.drawing import Drawing, drawing_of
from diffuse.runs.history import add_to_history
from diffuse.runs.output import Output
from diffuse.runs.recommended import faster_sampler, resolved
from diffuse.runs.trained import TrainedNetwork, load_for
from diffuse.scoring.likelihood_part import LikelihoodPart
from diffuse.scoring.report import EVAL_JSON, Report, expand_metrics, is_continued
from diffuse.scoring.samples_part import SamplesPart
from diffuse.system.distributed import Task
from diffuse.system.errors import Terminated, UsageError
from diffuse.system.files import OUTPUTS, short_path
from diffuse.system.joining import processes_of
from diffuse.system.progress import log


def run(config: EvalConfig, output: Output) -> dict[str, float]:
    """Score into a new folder of the run, or continue the evaluation in it. Returns every value by its name."""
    if config.samples is not None:
        refuse_keys_of_drawing(output.overrides)
        if not set(expand_metrics(config.metrics)) & set(SAMPLE_SCORES):
            raise UsageError(
                f"samples= are scored by metrics=[{','.join(SAMPLE_SCORES)}], and "
                f"metrics=[{','.join(config.metrics)}] scores the network: set metrics=[fid], for example"
            )
    processes = processes_of(config.device)
    return processes.command(partial(build_all, config), Built.tasks, partial(score, output, processes.count))


class Built(NamedTuple):
    """The objects of an evaluation, and its config with the sampler that its name stands for."""

    config: EvalConfig
    network: TrainedNetwork | None
    parts: list[LikelihoodPart | SamplesPart]
    drawing: Drawing | None

    def tasks(self) -> dict[str, Task]:
        """What processes that do not lead compute."""
        return dict(ChainMap(*(part.tasks for part in self.parts)))


def build_all(config: EvalConfig) -> Built:
    """Build and check everything; nothing is written into the run."""
    network = network_of(config)
    if network:
        sampler = resolved(config.sampler, network.config.prediction, network.config.sampler)
        config = replace(config, sampler=sampler)
    return Built(config, network, *parts_of(config, network))


def score(output: Output, processes: int, built: Built) -> dict[str, float]:
    """Score into a folder: what the process that leads does."""
    config, network, parts, drawing = built
    begun = {
        "command": output.command,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
    home, provenance = (network.home, network.provenance) if network else (OUTPUTS, {})

    def continued(folder: Path) -> bool:
        return is_continued(folder, config, provenance.get("checkpoint_sha256"))

    with output.new_folder(home / "eval", config.name, "eval.log", continued) as folder:
        if network:
            add_to_history(home, output.command, folder, network.device, config.trust)
        report = Report(folder, config, provenance, begun)
        if report.facts["values"]:
            log.info(f"scored before: {', '.join(report.facts['values'])}")
        elif drawing:
            log.info(f"images are drawn by {drawing.summary.rstrip(',')}")
            if faster := faster_sampler(drawing.sampler, output.typed_keys):
                log.info(faster)
        try:
            for part in parts:
                part.score(report)
        except (KeyboardInterrupt, Terminated):
            again = output.command if config.name else f"{output.command} name={folder.name}"
            advice = "" if output.sweep_folder else f"; continue with: {again}"  # a sweep prints its own
            log.info(f"stopped, the scores so far are in {short_path(folder)}{advice}")
            raise
        sources = [network.sources] if network else []
        report.note("made_from", dict(ChainMap(*(part.sources() for part in parts), *sources)))
        report.close(plain(network.config) if network else {}, output.typed_keys)
        names = [name for name in ("terms.csv", "terms.png", "memorisation.png") if (folder / name).exists()]
        beside = f", {' and '.join(names)} beside it" if names else ""
        log.info(f"written: {short_path(folder / EVAL_JSON)}{beside}")
    cost = drawing and drawing.evaluations
    return {**report.values, EVALUATIONS: cost} if cost else report.values


def network_of(config: EvalConfig) -> TrainedNetwork | None:
    """The trained network; None where images are given and no likelihood is asked for."""
    if config.ckpt is not None:
        return load_for(config)
    if config.samples is None or set(expand_metrics(config.metrics)) & set(LIKELIHOODS):
        raise UsageError(
            "ckpt is required: diffuse eval ckpt=RUN. Only samples are scored without a network: "
            "samples=IMAGES reference=IMAGES metrics=[fid]"
        )
    return None


def parts_of(
    config: EvalConfig, network: TrainedNetwork | None
) -> tuple[list[LikelihoodPart | SamplesPart], Drawing | None]:
    """The parts that compute the requested scores, checked, with nothing written; and what draws images, if needed."""
    names = set(expand_metrics(config.metrics))
    likelihoods, of_samples = names & set(LIKELIHOODS), names & set(SAMPLE_SCORES)
    if not of_samples and config.guidance.get("_target_") != "none":
        raise UsageError(
            "guidance is for drawing images, and these metrics draw none: leave guidance out, or add metrics=[fid]"
        )
    drawing = drawing_of(network, config) if network and of_samples and config.samples is None else None
    parts: list[LikelihoodPart | SamplesPart] = [LikelihoodPart(config, network)] if network and likelihoods else []
    return ([*parts, SamplesPart(config, network, drawing)] if of_samples else parts), drawing


def refuse_keys_of_drawing(overrides: Sequence[str]) -> None:
    """Raise UsageError where the command line has keys about drawing images, although images are given."""
    for word in overrides:
        key = word.lstrip("+").partition("=")[0]
        if key.partition(".")[0] in ("sampler", "label", "guidance"):
            raise UsageError(f"{key} is about drawing images, and samples= gives images: leave one of them out")
