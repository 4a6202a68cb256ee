"""What scoring samples costs beside its network calls: those of sampling and those of the features.

    OMP_NUM_THREADS=1 python scripts/benchmark_samples.py --ckpt outputs/RUN --n 10000 [--features classifier]

Does what `diffuse eval metrics=[fid,kid,precision_recall] n=N` does, with a clock around each call of both networks.
Expected: a ratio below 1.1 at 10,000 images. Cost: that evaluation.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffuse.cli.task import compose
from diffuse.runs.drawing import drawing_of
from diffuse.runs.trained import load_for
from diffuse.scoring.report import Report
from diffuse.scoring.samples_part import SamplesPart
from diffuse.system.device import Device

# On a CPU the seconds that it worked for us: the clock on the wall counts what other programs do beside.
clock = time.monotonic if torch.cuda.is_available() else time.process_time


class Timed:
    """A function with the seconds and the number of its calls."""

    def __init__(self, function: Callable[..., Any], device: Device):
        self.function, self.device, self.seconds, self.count = function, device, 0.0, 0

    def __call__(self, *arguments: Any) -> Any:
        self.device.synchronize()
        started = clock()
        result = self.function(*arguments)
        self.device.synchronize()
        self.seconds += clock() - started
        self.count += 1
        return result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ckpt", required=True)
    options.add_argument("--n", type=int, default=10_000)
    options.add_argument("--features", default="classifier")
    options.add_argument("--steps", type=int, default=50)
    given = options.parse_args()
    words = [f"ckpt={given.ckpt}", f"n={given.n}", f"sampler.steps={given.steps}", f"features={given.features}"]
    config = compose("eval", *words, "metrics=[fid,kid,precision_recall]")
    trained = load_for(config)
    _ = SamplesPart(config, trained, drawing_of(trained, config)).real_side  # its features are known from now on
    started = clock()
    trained = load_for(config)
    part = SamplesPart(config, trained, drawing_of(trained, config))
    network, features = Timed(trained.net.forward, trained.device), Timed(part.features.net, trained.device)
    trained.net.forward, part.features = network, replace(part.features, net=features)
    with tempfile.TemporaryDirectory() as folder:
        part.score(Report(Path(folder), config, trained.provenance))
    whole, calls = clock() - started, network.seconds + features.seconds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {trained.where}, n {given.n}")
    print(f"evaluation {whole:.2f} s: network {network.seconds:.2f} s, features {features.seconds:.2f} s")
    print(f"ratio {whole / calls:.3f}")


if __name__ == "__main__":
    main()
