"""What a sweep leaves: its table."""

import csv
from pathlib import Path


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of sweep.csv."""
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(folder: Path, name: str) -> list[str]:
    return [row[name] for row in table(folder)]
