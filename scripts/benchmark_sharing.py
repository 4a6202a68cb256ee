"""How long two trainings take at once, compared with one alone, on this machine and with nothing else on it.

    python scripts/benchmark_sharing.py --steps 800 --rounds 2

Each is `diffuse train` in a new process, without a number of threads.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time


def seconds(count: int, words: list[str]) -> float:
    """How long it takes until `count` trainings, started at once, have all ended."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "diffuse", "train", *words]
        started = time.monotonic()
        running = [
            subprocess.Popen([*command, f"name={number}"], cwd=folder, env=environment, stdout=subprocess.DEVNULL)
            for number in range(count)
        ]
        assert not any(process.wait() for process in running)
        return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    words = [f"steps={arguments.steps}"]
    alone, both = [], []
    for _ in range(arguments.rounds):
        alone.append(seconds(1, words))
        both.append(seconds(2, words))
    one, two = statistics.median(alone), statistics.median(both)
    print(f"{arguments.steps} steps: alone {one:.0f} s, two at once {two:.0f} s, ratio {two / one:.2f}")
    print(f"alone {[round(value) for value in alone]}, two at once {[round(value) for value in both]}")


if __name__ == "__main__":
    main()
