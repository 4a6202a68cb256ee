"""metrics.jsonl of a run folder: one line for each measurement, {"step": 50, "loss": 0.04, ...}."""

import json
from pathlib import Path
from typing import Any

from diffuse.system.files import write_atomic

METRICS_FILE = "metrics.jsonl"
SCORE_PREFIX = "eval/"  # of the names that scores have among the metrics of a training


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, none without that file. A line that a crash left unfinished is the end."""
    path = folder / METRICS_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    found: list[dict[str, Any]] = []
    for line in text.split("\n")[:-1]:
        try:
            found.append(dict(json.loads(line)))
        except ValueError:
            break
    return found


def forget_after(folder: Path, step: int) -> None:
    """Remove the lines of metrics.jsonl after `step`, and unfinished ones: those steps will be done again."""
    kept = [json.dumps(values) + "\n" for values in read_metrics(folder) if values["step"] <= step]
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
