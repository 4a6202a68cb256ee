"""metrics.jsonl of a run folder: one line for each measurement, {"step": 50, "loss": 0.04, ...}."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffuse.system.files import write_atomic
from diffuse.system.progress import log

METRICS_FILE = "metrics.jsonl"
SCORE_PREFIX = "eval/"  # of the names that scores have among the metrics of a training


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, none without that file. Lines that a crash damaged are left out."""
    return [values for values in _lines(folder) if values is not None]


def _lines(folder: Path) -> list[dict[str, Any] | None]:
    """Every line, or None where it is damaged; what follows the last end of a line is not finished, and no line."""
    path = folder / METRICS_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [_values(line) for line in text.split("\n")[:-1]]


def _values(line: str) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            return found
    return None


def forget_after(folder: Path, step: int) -> None:
    """Remove the lines of metrics.jsonl after `step`, and unfinished ones: those steps will be done again."""
    lines = _lines(folder)
    if damaged := [str(number) for number, values in enumerate(lines, start=1) if values is None]:
        log.warning(f"{folder / METRICS_FILE}: damaged lines are left out: {', '.join(damaged)}")
    kept = [json.dumps(values) + "\n" for values in lines if values and values["step"] <= step]
    write_atomic(folder / METRICS_FILE, lambda file: file.writelines(kept))


def last_values(folder: Path) -> dict[str, float]:
    """The values at the last step, by name: the scores of `eval.every`, if there are any, and the loss."""
    lines = read_metrics(folder)
    last = {name: value for line in lines if line["step"] == lines[-1]["step"] for name, value in line.items()}
    scores = {name.removeprefix(SCORE_PREFIX): value for name, value in last.items() if name.startswith(SCORE_PREFIX)}
    return {**scores, **({"loss": last["loss"]} if "loss" in last else {})}


def score_by_step(folder: Path, name: str) -> dict[int, float]:
    """The values of a score in a training so far, by step."""
    key = SCORE_PREFIX + name
    return {values["step"]: values[key] for values in read_metrics(folder) if key in values}
