"""config.yaml of a run folder: the config that the run began with. This module does not import torch."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from diffuse.options.build import with_defaults
from diffuse.options.schema import TrainConfig, flat, groups, may_change, plain, stored_config
from diffuse.runs.checkpoint_files import CHECKPOINTS, all_in
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import AT_BEST, RECORD, refuse_aliases, run_path, write_atomic

ENDLESS = ("none", "inverse_sqrt")  # decays of the learning rate that do not depend on the number of steps
LISTED_KEYS, VALUE_LENGTH = 8, 60  # in a message


def write_record(folder: Path, config: TrainConfig) -> None:
    """Write config.yaml: every value, in the order of the keys in the schema."""
    write_atomic(folder / RECORD, lambda file: file.write(as_yaml(config)))


def read_record(folder: Path) -> TrainConfig:
    """The config that the run in this folder began with."""
    path = folder / RECORD
    if not folder.is_dir():
        raise UserError(f"resume={folder} is not a folder; give the folder of a run")
    if not path.is_file():
        raise UserError(f"resume={folder} is not the folder of a run: it has no {RECORD}")
    try:
        refuse_aliases(path)
        return stored_config(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
    except Exception as error:  # a damaged file raises errors of many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} does not hold the config of a run: {reason}\n"
            "Restore it; every checkpoint of the run holds it too, under 'config'"
        ) from error


def record_around(ckpt: str) -> TrainConfig | None:
    """The config of the run that `ckpt` names or lies in; None where that cannot be read."""
    path = run_path(ckpt.removesuffix(AT_BEST)).absolute()
    for folder in (path, *list(path.parents)[:2]) if path.exists() else ():
        if (folder / RECORD).is_file():
            with suppress(UserError):
                return read_record(folder)
    return None


def as_yaml(config: TrainConfig) -> str:
    """The config as YAML, in the order of its keys."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def shorten(value: Any) -> str:
    """The text of a value of a config, or its beginning: it may be a table of betas."""
    text = str(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]} ..."


def flat_with_defaults(config: TrainConfig, trust: Sequence[str]) -> dict[str, Any]:
    """Every value by its dotted key, with the defaults of options that the config does not mention."""
    values = plain(config)
    nodes = {name: with_defaults(values[name], name, trust) for name in groups("train") if name in values}
    return flat({**values, **nodes})


def refuse_changes(record: TrainConfig, config: TrainConfig, folder: Path) -> None:
    """Raise UsageError where a key has changed since the run began that changes what it computes."""
    then, now = (flat_with_defaults(either, config.trust) for either in (record, config))
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key) and not may_change(key)]
    if changed == ["name"]:
        raise UsageError(f"resume={folder} continues that run under its own name; leave name={config.name} out")
    if changed:
        changes = [f"{key} (was {shorten(then.get(key))}, now {shorten(now.get(key))})" for key in changed]
        more = f" and {len(changed) - LISTED_KEYS} more" if changed[LISTED_KEYS:] else ""
        raise UsageError(
            f"{folder} was begun with another config and cannot continue with this one: "
            f"{', '.join(changes[:LISTED_KEYS])}{more}.\nLeave these keys as they were, or choose another name="
        )
    begun = any(all_in(folder / CHECKPOINTS))
    if config.steps != record.steps and record.optim.decay not in ENDLESS and begun:
        decay = record.optim.decay
        raise UsageError(
            f"steps cannot change from {record.steps} to {config.steps}: with optim.decay={decay} the learning rate of "
            f"every step depends on it, and falls to 0 at step {record.steps}.\nTrain a new run of that length (another"
            f" name=, steps={config.steps}); one with optim.decay=none or inverse_sqrt can always go on"
        )
    if config.steps < record.steps and begun:
        raise UsageError(
            f"steps can grow from {record.steps} when a run is continued, not shrink to {config.steps}; choose "
            "another name="
        )
