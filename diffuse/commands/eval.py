"""`diffuse eval`: how well a trained network describes the test split, and how its samples compare with real images."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffuse.options.score_names import LIKELIHOODS, SAMPLE_SCORES
from diffuse.runs.drawing import Drawing
from diffuse.runs.output import Job
from diffuse.runs.trained import Prepared
from diffuse.scoring.likelihood_part import LikelihoodPart
from diffuse.scoring.report import FILE, Report, asked, is_continued
from diffuse.system.errors import Terminated, UsageError
from diffuse.system.files import OUTPUTS, shown
from diffuse.system.progress import log


def run(config: Mapping[str, Any], job: Job) -> dict[str, float]:
    """Score into a new folder of the run, or go on with an evaluation of that name; returns every value by its name."""
    if config["samples"] is not None:
        refuse_keys_of_drawing(job.overrides)
        if not set(asked(config)) & set(SAMPLE_SCORES):
            raise UsageError(
                f"samples= are scored by metrics=[{','.join(SAMPLE_SCORES)}], and "
                f"metrics=[{','.join(config['metrics'])}] scores the network: say metrics=[fid], for example"
            )
    prepared, parts = parts_of(config)
    begun = {"command": job.command, "date": time.strftime("%Y-%m-%d %H:%M:%S"), "threads": torch.get_num_threads()}
    trained = prepared.trained if prepared else None
    home, provenance = (trained.home, trained.provenance) if trained else (OUTPUTS, {})

    def continued(folder: Path) -> bool:
        return is_continued(folder, config, provenance.get("checkpoint_sha256"))

    with job.new_folder(home / "eval", config["name"], "eval.log", continued) as folder:
        report = Report(folder, config, provenance, begun)
        if report.facts["values"]:
            log.info(f"scored before: {', '.join(report.facts['values'])}")
        try:
            for part in parts:
                part.score(report)
        except (KeyboardInterrupt, Terminated):
            named = config["name"] or job.sweep_folder
            again = "give the same command again" if named else "with a name= it could go on"
            log.info(f"stopped; what was found is in {shown(folder)}: {again}")
            raise
        report.close(trained.config if trained else {})
        log.info(f"written: {shown(folder / FILE)}{beside(folder)}")
    return report.values


def parts_of(config: Mapping[str, Any]) -> tuple[Prepared | None, list[Any]]:
    """What the scores asked for need, built and checked before anything is written; the trained network, if any."""
    names = set(asked(config))
    of_samples = bool(names & set(SAMPLE_SCORES))
    if config["ckpt"] is None:
        if names & set(LIKELIHOODS) or config["samples"] is None:
            raise UsageError(
                "ckpt is required: diffuse eval ckpt=RUN. Only samples are scored without a network: "
                "samples=IMAGES reference=IMAGES metrics=[fid]"
            )
        prepared = None
    else:
        drawing = of_samples and config["samples"] is None
        prepared = Drawing(config) if drawing else Prepared(config)
    parts: list[Any] = []
    if prepared and names & set(LIKELIHOODS):
        parts.append(LikelihoodPart(config, prepared))
    if of_samples:
        from diffuse.scoring.samples_part import SamplesPart  # takes a second more to import

        parts.append(SamplesPart(config, prepared))
    return prepared, parts


def refuse_keys_of_drawing(typed: Sequence[str]) -> None:
    """Raise UsageError where keys about drawn images are typed beside images that are there."""
    for word in typed:
        key = word.lstrip("+").partition("=")[0]
        if key.partition(".")[0] in ("sampler", "label"):
            raise UsageError(f"{key} is about images that are drawn, and samples= names others: leave one of them out")


def beside(folder: Path) -> str:
    """The other files that a reader may want to open."""
    names = [name for name in ("terms.csv", "terms.png", "memorisation.png") if (folder / name).exists()]
    return f", {' and '.join(names)} beside it" if names else ""
