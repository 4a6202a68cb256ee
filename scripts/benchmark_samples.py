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

import hydra
import torch

from diffuse.cli.app import CONFIGS
from diffuse.options.schema import SCHEMAS, checked
from diffuse.runs.drawing import Drawing
from diffuse.scoring.report import Report
from diffuse.scoring.samples_part import SamplesPart

# On a processor the seconds that it worked for us: the clock on the wall counts what others do beside.
clock = time.monotonic if torch.cuda.is_available() else time.process_time


class Timed:
    """A function with the seconds that its calls took."""

    def __init__(self, function: Callable[..., Any], drawing: Drawing):
        self.function, self.drawing, self.seconds = function, drawing, 0.0

    def __call__(self, *arguments: Any) -> Any:
        self.drawing.device.synchronize()
        started = clock()
        result = self.function(*arguments)
        self.drawing.device.synchronize()
        self.seconds += clock() - started
        return result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ckpt", required=True)
    options.add_argument("--n", type=int, default=10_000)
    options.add_argument("--features", default="classifier")
    options.add_argument("--steps", type=int, default=50)
    given = options.parse_args()
    words = [f"ckpt={given.ckpt}", f"n={given.n}", f"sampler.steps={given.steps}", f"features={given.features}"]
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        typed = hydra.compose("eval", [*words, "metrics=[fid,kid,precision_recall]"])
    config = checked(typed, SCHEMAS["eval"])
    _ = SamplesPart(config, Drawing(config)).real_side  # its features are known from now on
    started = clock()
    drawing = Drawing(config)
    part = SamplesPart(config, drawing)
    network, features = Timed(drawing.trained.net.forward, drawing), Timed(part.features.net, drawing)
    drawing.trained.net.forward, part.features = network, replace(part.features, net=features)
    with tempfile.TemporaryDirectory() as folder:
        part.score(Report(Path(folder), config, drawing.trained.provenance))
    whole, calls = clock() - started, network.seconds + features.seconds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {drawing.where}, n {given.n}")
    print(f"evaluation {whole:.2f} s: network {network.seconds:.2f} s, features {features.seconds:.2f} s")
    print(f"ratio {whole / calls:.3f}")


if __name__ == "__main__":
    main()
