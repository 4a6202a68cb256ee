"""Put the table of a sweep at the top of docs/results.md, with the date, the hardware and the commands that made it.

    python scripts/into_results.py outputs/SWEEP --title "which is better" --command "diffuse eval -m ..."

Whoever ran it writes the verdict into the heading once the table has been looked at.
"""

import argparse
import datetime
import platform
import re
from pathlib import Path

import torch

from diffuse.system.files import write_atomic

RESULTS = Path(__file__).parent.parent / "docs" / "results.md"


def hardware() -> str:
    """What the sweep ran on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", described)
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''} of {model[1] if model else platform.machine()}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("sweep", type=Path)
    options.add_argument("--title", required=True)
    options.add_argument("--command", action="append", required=True)
    given = options.parse_args()
    commands = "\n".join(f"    {' '.join(command.split())}" for command in given.command)
    without_links = re.sub(r"\[(\d+)\]\(<.*?>\)", r"\1", (given.sweep / "sweep.md").read_text())
    table = "\n".join(line for line in without_links.splitlines() if line.startswith("|"))
    made_on = f"{hardware()}, torch {torch.__version__}."
    entry = f"## {datetime.date.today()}: {given.title}\n\n{made_on}\n\n{commands}\n\n{table}\n\n"
    head, mark, rest = RESULTS.read_text().partition("\n## ")
    if f": {given.title}\n" in RESULTS.read_text():
        raise SystemExit(f"{RESULTS} has an entry with this title: choose another, or take it out")
    write_atomic(RESULTS, lambda file: file.write(f"{head}\n{entry}{mark.lstrip()}{rest}"))
    print(f"{given.sweep}/sweep.md stands in {RESULTS} now")


if __name__ == "__main__":
    main()
