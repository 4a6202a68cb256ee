"""`diffuse eval`: how well a trained network describes the test split, and how its samples compare with real images."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffuse.options.schema import EvalConfig, plain
from diffuse.options.score_names import LIKELIHOODS, SAMPLE_SCORES
from diffuse.runs.drawing import Drawing, drawing_of
from diffuse.runs.output import Output
from diffuse.runs.trained import TrainedNetwork, load_for
from diffuse.scoring.likelihood_part import LikelihoodPart
from diffuse.scoring.report import EVAL_JSON, Report, is_continued, requested
from diffuse.system.errors import Terminated, UsageError
from diffuse.system.files import OUTPUTS, short_path
from diffuse.system.progress import log

if TYPE_CHECKING:
    from diffuse.scoring.samples_part import SamplesPart


def run(config: EvalConfig, output: Output) -> dict[str, float]:
    """Score into a new folder of the run, or continue an evaluation of that name; returns every value by its name."""
    if config.samples is not None:
        refuse_keys_of_drawing(output.overrides)
        if not set(requested(config.metrics)) & set(SAMPLE_SCORES):
            raise UsageError(
                f"samples= are scored by metrics=[{','.join(SAMPLE_SCORES)}], and "
                f"metrics=[{','.join(config.metrics)}] scores the network: say metrics=[fid], for example"
            )
    network, parts = parts_of(config)
    begun = {"command": output.command, "date": time.strftime("%Y-%m-%d %H:%M:%S"), "threads": torch.get_num_threads()}
    home, provenance = (network.home, network.provenance) if network else (OUTPUTS, {})

    def continued(folder: Path) -> bool:
        return is_continued(folder, config, provenance.get("checkpoint_sha256"))

    with output.new_folder(home / "eval", config.name, "eval.log", continued) as folder:
        report = Report(folder, config, provenance, begun)
        if report.facts["values"]:
            log.info(f"scored before: {', '.join(report.facts['values'])}")
        try:
            for part in parts:
                part.score(report)
        except (KeyboardInterrupt, Terminated):
            named = config.name or output.sweep_folder
            again = "give the same command again" if named else "with a name= it could go on"
            log.info(f"stopped; what was found is in {short_path(folder)}: {again}")
            raise
        report.close(plain(network.config) if network else {})
        log.info(f"written: {short_path(folder / EVAL_JSON)}{other_files(folder)}")
    return report.values


def parts_of(config: EvalConfig) -> tuple[TrainedNetwork | None, "list[LikelihoodPart | SamplesPart]"]:
    """What the requested scores need, built and checked before anything is written; the trained network, if any."""
    names = set(requested(config.metrics))
    likelihoods, of_samples = names & set(LIKELIHOODS), names & set(SAMPLE_SCORES)
    if config.ckpt is None and (likelihoods or config.samples is None):
        raise UsageError(
            "ckpt is required: diffuse eval ckpt=RUN. Only samples are scored without a network: "
            "samples=IMAGES reference=IMAGES metrics=[fid]"
        )
    network = load_for(config) if config.ckpt is not None else None
    drawing = drawing_of(network, config) if network and of_samples and config.samples is None else None
    parts: list[LikelihoodPart | SamplesPart] = [LikelihoodPart(config, network)] if network and likelihoods else []
    return network, [*parts, samples_part(config, network, drawing)] if of_samples else parts


def samples_part(config: EvalConfig, network: TrainedNetwork | None, drawing: Drawing | None) -> "SamplesPart":
    from diffuse.scoring.samples_part import SamplesPart  # takes a second more to import

    return SamplesPart(config, network, drawing)


def refuse_keys_of_drawing(typed: Sequence[str]) -> None:
    """Raise UsageError where keys about drawn images are typed although images are given."""
    for word in typed:
        key = word.lstrip("+").partition("=")[0]
        if key.partition(".")[0] in ("sampler", "label"):
            raise UsageError(f"{key} is about images that are drawn, and samples= names others: leave one of them out")


def other_files(folder: Path) -> str:
    """The other files that a reader may want to open."""
    names = [name for name in ("terms.csv", "terms.png", "memorisation.png") if (folder / name).exists()]
    return f", {' and '.join(names)} beside it" if names else ""
