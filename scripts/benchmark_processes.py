"""Training with several processes against one, on the same global batch: the ratio of their times, in turn.

    python scripts/benchmark_processes.py                                  # 2 processes of one thread, 1 of two threads
    python scripts/benchmark_processes.py --device cuda --batch 256 --steps 200

On a CPU one process has as many threads as there are processes. On CUDA each process has a GPU: the efficiency is the
time of one GPU on a share of the batch, by the time of all of them on the whole batch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--unet", choices=("base", "tiny"), default="base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="measured steps, after as many that warm up")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    share = options.batch // options.processes
    alone = (options.batch, 1) if options.device == "cpu" else (share, 1)
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        times = [[seconds(options, Path(folder), *which) for which in (alone, (options.batch, options.processes))]
                 for _ in range(options.rounds)]  # fmt: skip
    one, several = (sorted(column)[len(column) // 2] for column in zip(*times, strict=True))
    print(
        f"one process, batch {alone[0]}: {one:.3f} s a step; {options.processes}, batch {options.batch}: {several:.3f}"
    )
    if options.device == "cpu":
        print(f"{options.processes} processes take {several / one:.3f} times the time of one with as many threads")
    else:
        print(f"efficiency on {options.processes} GPUs: {one / several:.3f}")


def make_data(folder: Path) -> None:
    """Random images of 32 x 32 in colour: the time does not depend on what they show."""
    images = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), np.uint8)
    np.savez(folder / "images.npz", arr_0=images)


def seconds(options: argparse.Namespace, folder: Path, batch: int, processes: int) -> float:
    """The time of a step in the second half of a new run, by its metrics."""
    threads = options.processes // processes if options.device == "cpu" else 1
    name = f"run-{len(list(folder.glob('outputs/*')))}"
    words = [
        *("dataset=npz", f"dataset.path={folder / 'images.npz'}", "recipe=cifar10", f"unet={options.unet}"),
        *(f"device={options.device}", f"device.processes={processes}", f"device.threads={threads}"),
        *(f"batch_size={batch}", f"steps={2 * options.steps}", f"log.every={options.steps}", f"name={name}"),
        *("images.every=1000000", "images.count=1", "sampler=ddim", "sampler.steps=1", "checkpoint.every=1000000"),
    ]  # the last step is shown and saved after it was measured
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    line = [sys.executable, "-m", "diffuse", "train", *words]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    last = (folder / "outputs" / name / "metrics.jsonl").read_text().splitlines()[-1]
    return batch / float(json.loads(last)["images_per_second"])


if __name__ == "__main__":
    main()
