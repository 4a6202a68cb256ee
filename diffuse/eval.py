"""`diffuse eval`: how well a trained network describes the test split, and how its samples compare with real images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuse.errors import UsageError
from diffuse.eval_likelihood import LikelihoodPart
from diffuse.files import OUTPUTS
from diffuse.job import Job, shown
from diffuse.progress import log
from diffuse.report import FILE, Report, asked, is_continued
from diffuse.schema import LIKELIHOODS, SAMPLE_SCORES


def run(config: Mapping[str, Any], job: Job) -> dict[str, float]:
    """Score into a new folder of the run, or go on with an evaluation of that name; returns every value by its name."""
    parts = parts_of(config)
    trained = parts[0].trained
    home, provenance = (trained.home, trained.provenance) if trained else (OUTPUTS, {})

    def continued(folder: Path) -> bool:
        return is_continued(folder, config, provenance.get("checkpoint_sha256"))

    with job.new_folder(home / "eval", config["name"], "eval.log", continued) as folder:
        report = Report(folder, config, provenance)
        for part in parts:
            part.score(report)
        report.close(trained.config if trained else {})
        log.info(f"written: {shown(folder / FILE)}{beside(folder)}")
    return report.values


def parts_of(config: Mapping[str, Any]) -> list[Any]:
    """What the scores asked for need, built and checked before anything is written."""
    names, parts = set(asked(config)), list[Any]()
    if names & set(LIKELIHOODS):
        if config["ckpt"] is None:
            raise UsageError("ckpt is required: diffuse eval ckpt=RUN; only samples are scored without a network")
        parts.append(LikelihoodPart(config))
    if names & set(SAMPLE_SCORES):
        from diffuse.eval_samples import SamplesPart  # takes a second more to import

        parts.append(SamplesPart(config))
    return parts


def beside(folder: Path) -> str:
    """The other files that a reader may want to open."""
    names = [name for name in ("terms.csv", "terms.png", "memorisation.png") if (folder / name).exists()]
    return f", {' and '.join(names)} beside it" if names else ""
