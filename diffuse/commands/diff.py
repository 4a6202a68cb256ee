"""`diffuse diff`: what differs between the configs of runs."""

from pathlib import Path

from diffuse.options.differences import differences
from diffuse.options.schema import plain
from diffuse.runs.record import record_around
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import RECORD, run_path, short_path
from diffuse.system.text_table import aligned, without_middle

LONGEST = 60  # characters of a value: it may be a table of betas
USAGE = """usage: diffuse diff RUN OTHER [MORE ...]

Prints every key in which the configs of these runs differ, a column for each run: run folders, or checkpoints in them.
"""


def run(words: list[str]) -> None:
    """Print the table. Raises UserError where a run cannot be read."""
    if len(words) < 2:
        raise UsageError("diffuse diff compares two runs or more: diffuse diff outputs/A outputs/B")
    configs = []
    for word in words:
        record = record_around(word)
        if record is None:
            inside = sorted(str(found.parent) for found in Path(run_path(word)).glob(f"*/{RECORD}"))
            runs = f"it holds the runs {', '.join(inside[:3])}" if inside else "diffuse ls lists the runs here"
            raise UserError(f"{word} is not a run, or its config.yaml cannot be read; {runs}")
        configs.append(plain(record))
    found = differences(configs)
    if not found:
        print("no difference in what they compute")
        return
    titles = ["key", *(short_path(Path(run_path(word))) for word in words)]
    rows = [[key, *(without_middle(value, LONGEST) for value in values)] for key, values in found.items()]
    for line in aligned([titles, *rows], "<" * len(titles)):
        print(line)
