"""How much longer preparing a folder of PNG files takes than decoding them, and how much memory it needs.

    python scripts/benchmark_preparation.py --count 60000 --size 32

Decoding is a bare loop of Pillow over the same files in one process, divided by the number of cores. Both are
measured in turn, three times; the smallest of each counts. The files lie in a temporary folder.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse.system.threads import cores


def make_files(place: Path, count: int, size: int) -> None:
    """Smooth noise, which compresses about as well as photographs do."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (size // 4, size // 4, 3), np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        image = np.clip(smooth + random.integers(-8, 9, (size, size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(place / f"{number:06d}.png")


def decode(place: Path) -> float:
    """Seconds that Pillow takes to decode all files, one after the other."""
    began = time.perf_counter()
    for path in place.iterdir():
        with Image.open(path) as image:
            image.load()
    return time.perf_counter() - began


def prepare(folder: Callable[..., Any], place: Path, size: int) -> float:
    """Seconds until both splits are there."""
    with tempfile.TemporaryDirectory() as data_dir:
        began = time.perf_counter()
        folder(Path(data_dir), str(place), size=size).load()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60_000)
    parser.add_argument("--size", type=int, default=32)
    arguments = parser.parse_args()
    from diffuse.data.datasets import (
        folder,  # not above: worker processes import this file, and should not import torch
    )

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_files(place, arguments.count, arguments.size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = [(decode(place), prepare(folder, place, arguments.size)) for _ in range(3)]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    decoding, preparing = (min(column) for column in zip(*times, strict=True))
    ideal = decoding / cores()
    print(f"{arguments.count:,} files of {arguments.size} x {arguments.size}, {cores()} cores")
    print(f"decoding alone, one process   {decoding:6.2f} s, shared by all cores {ideal:.2f} s")
    print(f"preparing                     {preparing:6.2f} s, {preparing / ideal:.2f} times that")
    array = arguments.count * 3 * arguments.size**2 / 1e6
    print(f"memory of this process grew by {grown / 1024:.0f} MB; the array has {array:.0f} MB")


if __name__ == "__main__":
    main()
