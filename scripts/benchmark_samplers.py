"""What a sampler costs beside its network calls, for each sampler, on DDPM's network for CIFAR-10.

    OMP_NUM_THREADS=1 python scripts/benchmark_samplers.py [--steps 50] [--n 1] [unet=base ...]

The weights are random: time does not depend on them. A clock stands around each network call of the same run.
Expected: ratios of at most 1.05. Cost: 4 minutes on one core; `--steps 5` is enough to see an expensive step.
"""

import argparse

import torch
from benchmark_samples import Timed, clock

from diffuse.cli.task import compose
from diffuse.options.build import build
from diffuse.options.dataset import build_dataset
from diffuse.options.formulas import Formulas
from diffuse.options.network import build_network
from diffuse.options.reference import options
from diffuse.runs.recommended import CHOICES
from diffuse.runs.sampler import Sampler
from diffuse.system.device import Device
from diffuse.system.files import data_folder
from diffuse.system.randomness import ImageNoise


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--steps", type=int, default=50)
    given.add_argument("--n", type=int, default=1, help="images")
    given.add_argument("words", nargs="*", help="of a training")
    given = given.parse_args()
    config = compose("train", "dataset=cifar10", *given.words)
    device: Device = build(config.device, "device")
    kind = build_dataset(config.dataset, data_folder(config.data_dir)).kind
    net = device.place(build_network(config, kind))
    formulas = Formulas.of(config, kind)
    calls = Timed(net.forward, device)
    net.forward = calls
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {formulas.where(device)}, {given.n} images")
    print(f"{'sampler':22} {'calls':>6} {'network s':>10} {'all s':>8} {'ratio':>7}")
    for option in options("sampler"):
        if option.name in CHOICES or option.name == "analytic_ddim":  # whose variance needs a trained network
            continue
        node = {"_target_": option.target, **option.values}
        if option.target != "dormand_prince":
            node["steps"] = given.steps
        sampler = Sampler(node, formulas, kind, ())
        noise = ImageNoise(0, "sample", range(given.n))
        x = noise(torch.empty(given.n, *kind.shape, device=device.torch))
        calls.seconds, calls.count = 0.0, 0
        started = clock()
        for _ in sampler.walk(sampler.wrap(formulas.denoiser(net, device)), x, sampler.times, noise=noise):
            pass
        device.synchronize()
        whole = clock() - started
        name = f"{option.name:22} {calls.count:>6}"
        print(f"{name} {calls.seconds:>10.2f} {whole:>8.2f} {whole / calls.seconds:>7.3f}", flush=True)


if __name__ == "__main__":
    main()
