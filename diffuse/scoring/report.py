"""The results of `diffuse eval` in eval.json: written whenever a score is known, and read when it is continued."""

import csv
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffuse
from diffuse.options.keys import all_keys
from diffuse.options.schema import EvalConfig, flat, plain
from diffuse.options.score_names import SYNONYMS
from diffuse.runs.hparams import EVENTS, SCORES, write_hparams
from diffuse.system.errors import UserError
from diffuse.system.files import atomic_path, json_round_trip, write_json
from diffuse.system.progress import log

EVAL_JSON = "eval.json"
PACKAGES = ("torch", "torchvision", "torch-fidelity", "numpy", "scipy")
Facts = Mapping[str, Any]
Values = dict[str, dict[str, Any]]  # of a score: the name of each value -> the value and what it depends on


def expand_metrics(metrics: Sequence[str]) -> list[str]:
    """The names of the scores in their order, each once; `bpd` stands for both likelihoods."""
    return list(dict.fromkeys(one for name in metrics for one in SYNONYMS.get(name, (name,))))


class Report:
    """The eval.json in a folder: the results of an earlier evaluation with the same keys, and those that follow.

    provenance: the checkpoint; begun: when and how the evaluation began, which stays the same when it is continued.
    """

    def __init__(self, folder: Path, config: EvalConfig, provenance: Facts, begun: Facts | None = None):
        self.folder, before = folder, read_report(folder)
        self.warnings: dict[str, list[str]] = {}  # with the names of their values
        versions = {name: version(name) for name in PACKAGES}
        self.facts: dict[str, Any] = {
            "values": {},
            "seconds": {},
            **(begun or {}),
            **before,
            "complete": False,
            **provenance,
            "versions": {"diffuse": diffuse.__version__, **versions, "python": platform.python_version()},
            "asked": relevant_keys(config),
        }
        if not before:
            self.note("complete", False)

    @property
    def values(self) -> dict[str, float]:
        """Every value by its name, in the order of `metrics`."""
        found = self.facts["values"]
        order = [*expand_metrics(self.facts["asked"]["metrics"]), *found]
        return {key: value for name in order for key, value in found.get(name, {}).items()}

    def note(self, key: str, facts: Any) -> None:
        """Record something beside the scores. The file is written at once, so that a killed evaluation can continue."""
        self.facts[key] = facts
        write_json(self.folder / EVAL_JSON, self.facts)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds spent in this context to those before an interruption."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = self.facts["seconds"].get(name, 0.0) + time.monotonic() - started
            self.note("seconds", {**self.facts["seconds"], name: round(seconds, 3)})

    def score(
        self, section: str, name: str, compute: Callable[[], Values], summary: Callable[[str, Facts], str]
    ) -> None:
        """Compute the values of a score, unless they are known; write them into a section of the file, and log them."""
        if name not in self.facts["values"]:
            with self.timed(name):
                found = compute()
            for key, value in values_only(found).items():
                if not math.isfinite(value):
                    raise UserError(f"{key} is {value}: what was compared holds NaN or infinite numbers, or overflows")
            self.facts["values"][name] = values_only(found)
            self.note(section, {**self.facts.get(section, {}), **found})
        for key in self.facts["values"][name]:
            facts = self.facts[section][key]
            log.info(summary(key, facts))
            for warning in facts.get("warnings", []):
                self.warnings.setdefault(warning, []).append(key)

    def close(self, trained: Facts, first: Sequence[str] = ()) -> None:
        """Mark the evaluation as complete; log the warnings; write config and values for TensorBoard.

        first: the keys of the command line, which TensorBoard shows first
        """
        for warning, names in self.warnings.items():
            log.warning(f"{', '.join(names)}: {warning}")
        self.note("complete", True)
        from torch.utils.tensorboard import SummaryWriter

        events, values = self.folder / EVENTS, {SCORES + name: value for name, value in self.values.items()}
        shutil.rmtree(events, ignore_errors=True)
        with SummaryWriter(str(events)) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, self.facts.get("step", 0))
        options = {**flat(trained), **flat({"eval": self.facts["asked"]})}
        write_hparams(events, options, [f"eval.{key}" for key in first], values)


def values_only(found: Values) -> dict[str, float]:
    """The numbers of a score by their names; a likelihood is the sum of its parts, its `total`."""
    return {name: float(facts["value" if "value" in facts else "total"]) for name, facts in found.items()}


def read_report(folder: Path) -> dict[str, Any]:
    """The eval.json of an earlier evaluation in this folder; empty where there is none."""
    try:
        return dict(json.loads((folder / EVAL_JSON).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a table by its columns."""
    with atomic_path(path) as beside, open(beside, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))


def relevant_keys(config: EvalConfig) -> dict[str, Any]:
    """The keys that may change a value, as JSON gives them back."""
    may_change = {name: about.may_change for name, _, about in all_keys(EvalConfig) if about.may_change}
    relevant = {key: value for key, value in json_round_trip(plain(config)).items() if may_change.get(key) is not True}
    for group, keys in may_change.items():
        if keys is not True:
            relevant[group] = {key: value for key, value in relevant[group].items() if key not in keys}
    return relevant


def is_continued(folder: Path, config: EvalConfig, checkpoint_sha256: str | None) -> bool:
    """Whether this folder holds an evaluation that this one continues. Raises UserError where it holds another."""
    if before := read_report(folder):
        then = {"checkpoint": before.get("checkpoint_sha256"), **flat(before.get("asked", {}))}
        refuse_changed(folder, then, {"checkpoint": checkpoint_sha256, **flat(relevant_keys(config))})
    return bool(before)


def refuse_changed(folder: Path, then: Facts, now: Facts) -> None:
    """Raise UserError where the evaluation in this folder depends on other things than this one."""
    if changed := [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]:
        raise UserError(f"{folder} holds an evaluation that differs in {', '.join(changed)}: choose another name=")
