"""metrics.jsonl of a run folder: a line for each time something was measured, {"step": 50, "loss": 0.04, ...}."""

import json
from pathlib import Path
from typing import Any

from diffuse.system.files import write_atomic

METRICS = "metrics.jsonl"
SCORE_PREFIX = "eval/"  # how the names of scores begin among the metrics of a training


def whole_lines(metrics: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of metrics.jsonl, if it is there, as text and values; what a crash left unfinished is passed over."""
    found: list[tuple[str, dict[str, Any]]] = []
    if not metrics.exists():
        return found
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            found.append((line, dict(json.loads(line))))
        except ValueError:
            break
        if not line.endswith("\n"):
            found.pop()
    return found


def forget_after(metrics: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl beyond `step`, and what a crash left unfinished: they will be written again."""
    kept = [line for line, values in whole_lines(metrics) if values["step"] <= step]
    write_atomic(metrics, lambda file: file.writelines(kept))


def last_values(folder: Path) -> dict[str, float]:
    """What was reported at the last step, by name: the scores of `eval.every`, if there are any, and the loss."""
    lines = [values for _, values in whole_lines(folder / METRICS)]
    found: dict[str, float] = {}
    for values in lines:
        found |= values if values["step"] == lines[-1]["step"] else {}
    scores = {name.removeprefix(SCORE_PREFIX): value for name, value in found.items() if name.startswith(SCORE_PREFIX)}
    return {**scores, **({"loss": found["loss"]} if "loss" in found else {})}


def scores_so_far(folder: Path, name: str) -> dict[int, float]:
    """The values of a score by the step that they are of."""
    lines = [values for _, values in whole_lines(folder / METRICS)]
    return {values["step"]: values[SCORE_PREFIX + name] for values in lines if SCORE_PREFIX + name in values}
