"""What scoring samples costs beside its network calls: those of sampling and those of the features.

    OMP_NUM_THREADS=1 python scripts/benchmark_samples.py --ckpt outputs/RUN --n 2000 [--features classifier]

Runs `diffuse eval metrics=[fid,kid,precision_recall] n=N` and, before and after it, the network calls that it cannot do
without: as many of the denoiser as the sampler makes, and the feature network on as many images. Expected: a ratio
below 1.1. Cost: three times the evaluation.
"""

import argparse
import time

import hydra
import numpy as np
import torch

from diffuse import eval as evaluation
from diffuse.app import CONFIGS
from diffuse.drawing import Drawing
from diffuse.eval_samples import SamplesPart
from diffuse.job import Job
from diffuse.schema import SCHEMAS, checked

# On a processor the seconds that it worked for us: the clock on the wall counts what others do beside.
clock = time.monotonic if torch.cuda.is_available() else time.process_time


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ckpt", required=True)
    options.add_argument("--n", type=int, default=2000)
    options.add_argument("--features", default="classifier")
    options.add_argument("--steps", type=int, default=50)
    given = options.parse_args()
    words = [f"ckpt={given.ckpt}", f"n={given.n}", f"sampler.steps={given.steps}", f"features={given.features}"]
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        typed = hydra.compose("eval", [*words, "metrics=[fid,kid,precision_recall]"])
    config = checked(typed, SCHEMAS["eval"])
    part = SamplesPart(config, Drawing(config))
    _ = part.real_side  # known from now on
    before = calls_alone(part, given.n)
    started = clock()
    evaluation.run(config, Job("benchmark", [], {}))
    whole = clock() - started
    after = calls_alone(part, given.n)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {part.prepared.where}, n {given.n}")
    print(f"evaluation {whole:.2f} s, its network calls alone {before:.2f} s and {after:.2f} s")
    print(f"ratio {2 * whole / (before + after):.3f}")


@torch.no_grad()
def calls_alone(part: SamplesPart, n: int) -> float:
    """Seconds for the calls of both networks that n samples need."""
    drawing = part.prepared
    net = drawing.device.network(drawing.device.place(drawing.trained.net))
    x = torch.randn(drawing.chunk, *drawing.kind.shape, device=drawing.device.torch)
    time_input = torch.full((drawing.chunk,), 500.0, device=drawing.device.torch)
    y = torch.zeros(drawing.chunk, dtype=torch.long, device=drawing.device.torch) if drawing.conditional else None
    images = np.zeros((drawing.chunk, drawing.kind.channels, drawing.kind.size, drawing.kind.size), np.uint8)
    started = clock()
    for _ in range(-(-n // drawing.chunk)):
        for _ in range(drawing.sampler.evaluations):
            net(x, time_input, y)
        part.features(images)
    drawing.device.synchronize()
    return clock() - started


if __name__ == "__main__":
    main()
