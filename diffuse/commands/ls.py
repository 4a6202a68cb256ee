"""`diffuse ls`: the runs here, with their state, steps, last loss, score, age and size."""

import time

from diffuse.runs.listing import Facts, facts_of, printable, runs_in
from diffuse.system.errors import UserError
from diffuse.system.files import OUTPUTS, format_bytes, run_path, short_path
from diffuse.system.progress import duration
from diffuse.system.text_table import aligned

USAGE = """usage: diffuse ls [FOLDER ...]

Lists the runs in outputs/, or in these folders, the one that was changed last at the end: its state (running, finished,
stopped, failed), the step that is saved, the last loss, the newest score, how long ago it was changed, its size.
"""
TITLES = ("run", "state", "step", "loss", "score", "changed", "size")


def run(words: list[str]) -> None:
    """Print the table. Raises UserError where a folder does not exist."""
    places = [run_path(word) for word in words] or [OUTPUTS]
    for place in places:
        if words and not place.is_dir():
            raise UserError(
                f"{place} is not a folder; diffuse ls FOLDER lists the runs in it, diffuse ls those in {OUTPUTS}"
            )
    found = sorted((facts_of(folder) for place in places for folder in runs_in(place)), key=lambda facts: facts.changed)
    if not found:
        print(f"no runs in {', '.join(map(short_path, places))}; diffuse train name=first begins one")
        return
    now = time.time()
    for line in aligned([TITLES, *(row(facts, now) for facts in found)], "<<>><>>"):
        print(line)


def row(facts: Facts, now: float) -> tuple[str, ...]:
    """The cells of a run."""
    steps = f"{facts.step:,}" + (f" of {facts.steps:,}" if facts.steps and facts.step != facts.steps else "")
    loss = "" if facts.loss is None else f"{facts.loss:.4g}"
    score = f"{facts.score[0]} {facts.score[1]:.4g}" if facts.score else ""
    age = f"{duration(max(0.0, now - facts.changed))} ago" if facts.changed else ""
    return printable(short_path(facts.folder)), facts.state, steps, loss, score, age, format_bytes(facts.size)
