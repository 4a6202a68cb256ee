"""What an evaluation with guidance costs, beside one without it, on DDPM's network for CIFAR-10 with labels.

    OMP_NUM_THREADS=1 python scripts/benchmark_guidance.py [--rounds 5] [--n 4] [unet=base ...]

The weights are random: time does not depend on them. Evaluations without and with guidance take turns, and the ratio is
that of their medians. Expected: at most 2.05 for classifier-free guidance, 1.0 outside of its interval, about 3 for a
gradient. Cost: 3 minutes on one core.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from benchmark_samples import clock

from diffuse.cli.task import compose
from diffuse.mathematics.denoiser import AnyDenoiser
from diffuse.mathematics.guidance import ClassifierFree
from diffuse.mathematics.measurements import MeasurementGuided, pixels
from diffuse.options.build import build
from diffuse.options.dataset import build_dataset
from diffuse.options.formulas import Formulas
from diffuse.options.network import build_network, condition_of
from diffuse.system.device import Device
from diffuse.system.files import data_folder


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--rounds", type=int, default=5)
    given.add_argument("--n", type=int, default=4, help="images")
    given.add_argument("words", nargs="*", help="of a training")
    given = given.parse_args()
    config = compose("train", "dataset=cifar10", "class_conditional=true", *given.words)
    device: Device = build(config.device, "device")
    kind = build_dataset(config.dataset, data_folder(config.data_dir)).kind
    net = device.place(build_network(config, kind).requires_grad_(False))
    formulas, condition = Formulas.of(config, kind), condition_of(config, kind)
    plain = formulas.denoiser(net.eval(), device)
    free: Callable[..., AnyDenoiser] = partial(ClassifierFree, plain, 3.0, null=condition.null)
    target = torch.zeros(kind.shape, device=device.torch)
    guided = {
        "none": plain,
        "classifier_free": free(),
        "outside of its interval": free(interval=(0.0, 1e-6)),
        "scale 1": ClassifierFree(plain, 1.0, null=condition.null),
        "projected, rescaled": free(parallel=0.0, norm_limit=2.0, rescale=0.5),
        "loss (pixels)": MeasurementGuided(plain, measurement=pixels(), y=target, noise=0.1, covariance=0.25),
    }
    x, t = torch.randn(given.n, *kind.shape, device=device.torch), torch.tensor(500.0)
    y = condition.of_samples(range(given.n), device.torch)
    seconds: dict[str, list[float]] = {name: [] for name in guided}
    with torch.no_grad():
        for turn in range(given.rounds + 1):
            for name, denoiser in guided.items():
                started = clock()
                denoiser(x, t, y)
                device.synchronize()
                if turn:  # the first one warms up
                    seconds[name].append(clock() - started)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {formulas.where(device)}, {given.n} images")
    for name, taken in seconds.items():
        print(f"{name:24} {median(taken):>8.3f} s {median(taken) / median(seconds['none']):>7.3f}", flush=True)


if __name__ == "__main__":
    main()
