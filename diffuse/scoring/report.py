"""What `diffuse eval` finds, in eval.json: written whenever a score is known, and read again by whoever goes on."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffuse
from diffuse.options.score_names import SYNONYMS
from diffuse.runs.folder import flat
from diffuse.runs.hparams import write_hparams
from diffuse.system.errors import UserError
from diffuse.system.files import as_json_gives_it_back, write_json
from diffuse.system.progress import log

FILE = "eval.json"
PACKAGES = ("torch", "torchvision", "torch-fidelity", "numpy", "scipy")
# What may be typed otherwise when an evaluation is continued: it changes no value. The checkpoint has a hash.
FREE = ("name", "data_dir", "trust", "ckpt", "batch_size")
Values = dict[str, dict[str, Any]]
Facts = Mapping[str, Any]


def asked(config: Mapping[str, Any]) -> list[str]:
    """The scores that a config asks for, in its order, each once; `bpd` stands for both likelihoods."""
    return list(dict.fromkeys(one for name in config["metrics"] for one in SYNONYMS.get(name, (name,))))


class Report:
    """The eval.json in a folder: what was found before, if it was asked for in the same way, and what is found now."""

    def __init__(self, folder: Path, config: Mapping[str, Any], provenance: Facts, begun: Facts | None = None):
        self.folder, before = folder, read(folder)
        self.warnings: dict[str, list[str]] = {}  # with the values they are about
        versions = {name: version(name) for name in PACKAGES}
        self.facts: dict[str, Any] = {
            **{key: before.get(key, {}) for key in ("values", "seconds")},
            **(begun or {}),  # when and how the scoring began, which stays if it goes on
            **{key: facts for key, facts in before.items() if key not in ("values", "seconds")},
            "complete": False,
            **provenance,
            "versions": {"diffuse": diffuse.__version__, **versions, "python": platform.python_version()},
            "asked": plain(config),
        }
        if not before:
            self.write()

    @property
    def values(self) -> dict[str, float]:
        """Every value by its name, in the order in which scores were asked for."""
        found = self.facts["values"]
        order = [*asked(self.facts["asked"]), *found]
        return {key: value for name in order for key, value in found.get(name, {}).items()}

    def note(self, key: str, facts: Any) -> None:
        """Put something beside the scores. It is written at once: whoever is killed before the first can go on."""
        self.facts[key] = facts
        self.write()

    def spent(self, name: str, seconds: float) -> None:
        """Seconds that went into something, added to those of an evaluation that was interrupted."""
        self.facts["seconds"][name] = round(self.facts["seconds"].get(name, 0.0) + seconds, 3)

    def add(self, section: str, name: str, find: Callable[[], Values], told: Callable[[str, Facts], str]) -> None:
        """Find a score, write its values into a section of the file, and say them.

        What was found before, by an evaluation that was interrupted, is only said again.
        """
        known = self.facts["values"].get(name)
        if known is None:
            started = time.monotonic()
            found = find()
            self.spent(name, time.monotonic() - started)
            self.facts[section] = {**self.facts.get(section, {}), **found}
            self.facts["values"][name] = {key: number(facts) for key, facts in found.items()}
            self.write()
        for key in self.facts["values"][name]:
            facts = self.facts[section][key]
            log.info(told(key, facts))
            for warning in facts.get("warnings", []):
                self.warnings.setdefault(warning, []).append(key)

    def write(self) -> None:
        write_json(self.folder / FILE, self.facts)

    def close(self, trained: Facts) -> None:
        """Say that nothing is missing, and show TensorBoard what was scored with the values that it came to."""
        for warning, names in self.warnings.items():
            log.warning(f"{', '.join(names)}: {warning}")
        self.facts["complete"] = True
        self.write()
        write_hparams(self.folder, {**flat(trained), **flat({"eval": self.facts["asked"]})}, self.values)


def number(facts: Facts) -> float:
    """The value of a score itself."""
    return float(facts["value"] if "value" in facts else facts["total"])


def read(folder: Path) -> dict[str, Any]:
    """What an earlier evaluation wrote into this folder, or nothing."""
    try:
        return dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as JSON gives it back, without what changes no value."""
    return {key: value for key, value in as_json_gives_it_back(config).items() if key not in FREE}


def is_continued(folder: Path, config: Mapping[str, Any], checkpoint_sha256: str | None) -> bool:
    """Whether this folder holds an evaluation that this one would continue. Raises UserError where it holds another."""
    before = read(folder)
    if not before:
        return False
    then, now = flat(before.get("asked", {})), flat(plain(config))
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    if before.get("checkpoint_sha256") != checkpoint_sha256:
        changed.insert(0, "the checkpoint")
    refuse_other(folder, changed)
    return True


def refuse_other(folder: Path, changed: Sequence[str]) -> None:
    """Raise UserError where what was scored before into this folder is not what is asked for now."""
    if changed:
        raise UserError(f"{folder} holds an evaluation with other {', '.join(changed)}: choose another name=")
