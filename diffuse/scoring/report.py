"""What `diffuse eval` finds, in eval.json: written whenever a score is known, and read again when it is continued."""

import json
import platform
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
from diffuse.runs.hparams import write_hparams
from diffuse.system.errors import UserError
from diffuse.system.files import json_round_trip, write_json
from diffuse.system.progress import log

EVAL_JSON = "eval.json"
PACKAGES = ("torch", "torchvision", "torch-fidelity", "numpy", "scipy")
Values = dict[str, dict[str, Any]]
Facts = Mapping[str, Any]


def requested(metrics: Sequence[str]) -> list[str]:
    """The scores that are asked for, in their order, each once; `bpd` stands for both likelihoods."""
    return list(dict.fromkeys(one for name in metrics for one in SYNONYMS.get(name, (name,))))


class Report:
    """The eval.json in a folder: what was found before by an evaluation with the same keys, and what is found now."""

    def __init__(self, folder: Path, config: EvalConfig, provenance: Facts, begun: Facts | None = None):
        self.folder, before = folder, read_report(folder)
        self.warnings: dict[str, list[str]] = {}  # with the values they are about
        versions = {name: version(name) for name in PACKAGES}
        self.facts: dict[str, Any] = {
            **{key: before.get(key, {}) for key in ("values", "seconds")},
            **(begun or {}),  # when and how the scoring began, which stays if it is continued
            **{key: facts for key, facts in before.items() if key not in ("values", "seconds")},
            "complete": False,
            **provenance,
            "versions": {"diffuse": diffuse.__version__, **versions, "python": platform.python_version()},
            "asked": that_matter(config),
        }
        if not before:
            self.write()

    @property
    def values(self) -> dict[str, float]:
        """Every value by its name, in the order in which scores were asked for."""
        found = self.facts["values"]
        order = [*requested(self.facts["asked"]["metrics"]), *found]
        return {key: value for name in order for key, value in found.get(name, {}).items()}

    def has(self, name: str) -> bool:
        """Whether a score is known, by this evaluation or by one that it continues."""
        return name in self.facts["values"]

    def note(self, key: str, facts: Any) -> None:
        """Put something beside the scores. It is written at once, so that a killed evaluation can be continued."""
        self.facts[key] = facts
        self.write()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the seconds that something takes, added to those before an interruption."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = self.facts["seconds"].get(name, 0.0) + time.monotonic() - started
            self.note("seconds", {**self.facts["seconds"], name: round(seconds, 3)})

    def add(self, section: str, name: str, found: Values) -> None:
        """Write the values of a score, each with what it depends on, into a section of the file."""
        self.facts[section] = {**self.facts.get(section, {}), **found}
        self.facts["values"][name] = {key: number(facts) for key, facts in found.items()}
        self.write()

    def say(self, section: str, name: str, summary: Callable[[str, Facts], str]) -> None:
        """Print the values of a score that is known."""
        for key in self.facts["values"][name]:
            facts = self.facts[section][key]
            log.info(summary(key, facts))
            for warning in facts.get("warnings", []):
                self.warnings.setdefault(warning, []).append(key)

    def write(self) -> None:
        write_json(self.folder / EVAL_JSON, self.facts)

    def close(self, trained: Facts) -> None:
        """Note that nothing is missing, and show TensorBoard what was scored with its values."""
        for warning, names in self.warnings.items():
            log.warning(f"{', '.join(names)}: {warning}")
        self.note("complete", True)
        write_hparams(self.folder, {**flat(trained), **flat({"eval": self.facts["asked"]})}, self.values)


def number(facts: Facts) -> float:
    """The value of a score itself."""
    return float(facts["value"] if "value" in facts else facts["total"])


def read_report(folder: Path) -> dict[str, Any]:
    """What an earlier evaluation wrote into this folder, or nothing."""
    try:
        return dict(json.loads((folder / EVAL_JSON).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def that_matter(config: EvalConfig) -> dict[str, Any]:
    """The config as JSON gives it back, without the keys that change no value."""
    free = {name for name, _, about in all_keys(EvalConfig) if about.may_change}
    return {key: value for key, value in json_round_trip(plain(config)).items() if key not in free}


def is_continued(folder: Path, config: EvalConfig, checkpoint_sha256: str | None) -> bool:
    """Whether this folder holds an evaluation that this one would continue. Raises UserError where it holds another."""
    before = read_report(folder)
    if not before:
        return False
    then, now = flat(before.get("asked", {})), flat(that_matter(config))
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    if before.get("checkpoint_sha256") != checkpoint_sha256:
        changed.insert(0, "the checkpoint")
    refuse_changed(folder, changed)
    return True


def refuse_changed(folder: Path, changed: Sequence[str]) -> None:
    """Raise UserError where what was scored before into this folder is not what is asked for now."""
    if changed:
        raise UserError(f"{folder} holds an evaluation with other {', '.join(changed)}: choose another name=")
