"""What the bound of `diffuse eval` costs beside its network evaluations, and whether its memory grows with the images.

    python scripts/benchmark_scoring.py
    python scripts/benchmark_scoring.py --channels 64 --levels 100 --images 64

On random images of 32 x 32 x 3, each call of the network is timed on its own, in the same process, before and after
the bound; the ratio is the bound's time over that of as many calls alone. Both run as `diffuse eval` runs them, 16
images at a time on a processor. Memory is the peak of the process after the bound of `images`, and of four times as
many.
"""

import argparse
import time
from functools import partial

import torch

from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.likelihood import bits_per_dim, prior_term, reverse_terms
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.tables import linear
from diffuse.mathematics.variances import fixed_large, reverse_steps
from diffuse.networks.unet import UNet
from diffuse.scoring.likelihoods import Moments
from diffuse.system.device import Device
from diffuse.system.randomness import ImageNoise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=128, help="of the network (128 is that of the DDPM paper)")
    parser.add_argument("--levels", type=int, default=20)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = Device(arguments.device, "float32")
    net = (
        UNet(32, 3, channels=arguments.channels, channel_mult=[1, 2, 2, 2], blocks=2, attention=[16], groups=16)
        .eval()
        .requires_grad_(False)
    )
    rows = device.rows((32, 32), 64)
    denoiser = Denoiser(device.network(device.place(net), rows), linear())
    steps = reverse_steps(linear(), time_grid(linear(), arguments.levels))
    alone = partial(seconds_alone, denoiser, device, rows, arguments.images * arguments.levels)
    seconds_of_bound(denoiser, device, rows, steps[-2:], rows)
    before = alone()
    bound = seconds_of_bound(denoiser, device, rows, steps, arguments.images)
    after, memory = alone(), device.peak_memory()
    seconds_of_bound(denoiser, device, rows, steps, 4 * arguments.images)
    grown = device.peak_memory()
    sizes = f"{arguments.images} images, {arguments.levels} levels, {arguments.channels} channels"
    print(f"{device.torch.type}, float32: {sizes}")
    print(f"bound {bound:.2f} s; its network calls alone {before:.2f} s before and {after:.2f} s after")
    print(f"ratio {2 * bound / (before + after):.3f}")
    print(f"peak memory {memory / 1e6:.0f} MB; after four times as many images {grown / 1e6:.0f} MB")


@torch.no_grad()
def seconds_alone(denoiser, device: Device, rows: int, evaluations: int) -> float:
    """How long so many evaluations of the network take, `rows` at a time, and nothing else."""
    x = torch.randn(rows, 3, 32, 32, device=device.torch)
    time_input = torch.full((rows,), 500.0, device=device.torch)
    device.synchronize()
    started = time.monotonic()
    for _ in range(evaluations // rows):
        denoiser.net(x, time_input, None)
    device.synchronize()
    return time.monotonic() - started


def seconds_of_bound(denoiser, device: Device, rows: int, steps: list, count: int) -> float:
    """The same for the bound of `count` images, streamed as `diffuse eval` does."""
    device.synchronize()
    started, totals = time.monotonic(), Moments()
    for start in range(0, count, rows):
        noise = ImageNoise(0, "benchmark", range(start, start + rows))
        x0 = torch.rand(rows, 3, 32, 32, device=device.torch) * 2 - 1
        terms = [prior_term(denoiser.schedule, x0)]
        terms += reverse_terms(denoiser, x0, steps, None, fixed_large, None, noise)
        totals.add(bits_per_dim(torch.stack(terms, dim=1).double(), 3072).cpu().numpy())
    return time.monotonic() - started


if __name__ == "__main__":
    main()
