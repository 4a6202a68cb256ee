"""How much faster trainings are where freed memory is kept for the next tensors (diffuse/system/memory.py).

    python scripts/benchmark_memory.py                                # the default run
    python scripts/benchmark_memory.py --steps 4 -- dataset=gaussian dataset.size=32 unet=base batch_size=128

`diffuse train` runs with and without it, in turn, each in a new process; the words after `--` are added to its line.
The images per second are those of the last line of metrics. --other FOLDER also takes a turn of the code in another
checkout.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def speed(code: Path, keep: bool, steps: int, words: list[str]) -> float:
    """Images per second of a training."""
    quiet = [f"log.every={steps // 2}", f"images.every={steps}", "images.count=1", "sampler.steps=1"]
    line = ["train", "name=run", f"steps={steps}", *quiet, f"checkpoint.every={steps}", "device=cpu", *words]
    environment = {**os.environ, "DIFFUSE_KEEP_MEMORY": str(int(keep)), "PYTHONPATH": str(code)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "diffuse", *line]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        lines = (Path(folder) / "outputs/run/metrics.jsonl").read_text().splitlines()
    return float(json.loads(lines[-1])["images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path, help="another checkout, measured in turn")
    parser.add_argument("words", nargs="*", help="overrides")
    arguments = parser.parse_args()
    sides = {"kept": (HERE, True), "not kept": (HERE, False)}
    if arguments.other:
        sides["other checkout"] = (arguments.other.resolve(), True)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, (code, keep) in sides.items():
            found[name].append(speed(code, keep, arguments.steps, arguments.words))
    for name, values in found.items():
        median = statistics.median(values)
        ratio = statistics.median(found["kept"]) / median
        print(
            f"{name:15} {median:8.1f} images/s ({min(values):.1f} to {max(values):.1f}); kept is {ratio:.2f} times that"
        )


if __name__ == "__main__":
    main()
