"""Is it faster to send gradients behind the backward pass (DistributedDataParallel), or as one sum after it, as we do?

    python scripts/benchmark_overlap.py --processes 2 --batch 16
    python scripts/benchmark_overlap.py --processes 8 --batch 256 --device cuda

Forward and backward pass of a network on random images of 32 x 32, with the gradients added up over all processes: in
both ways, in turn, in one run. Prints the median of each and their ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffuse.options.build import build
from diffuse.system.device import Device
from diffuse.system.files import CONFIGS
from diffuse.system.launcher import launch_processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--unet", choices=("base", "tiny"), default="base")
    parser.add_argument("--batch", type=int, default=16, help="images of all processes")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    after, behind, alone = launch_processes(options.processes, 0, "benchmark", measured, options)
    print(f"{options.processes} processes, unet={options.unet}, batch {options.batch}, {options.device}:")
    print(f"without sending {alone:.3f} s; one sum after the backward pass {after:.3f} s; behind it {behind:.3f} s")
    print(f"one sum takes {after / behind:.3f} times the time of sending behind the backward pass")


def measured(options: argparse.Namespace) -> list[float]:
    """The median seconds of each way, in the leader's process."""
    device = Device(options.device, precision="float32", threads=1 if options.device == "cpu" else None)
    device.compute_with(1)
    share = options.batch // options.processes
    values = OmegaConf.to_container(OmegaConf.load(CONFIGS / "unet" / f"{options.unet}.yaml"))
    nets = [device.place(build({**values, "dropout": 0.0}, "unet", image_size=32, image_channels=3)) for _ in range(3)]
    x, t = torch.randn(share, 3, 32, 32, device=device.torch), torch.rand(share, device=device.torch)
    spread = DistributedDataParallel(nets[1], bucket_cap_mb=25, gradient_as_bucket_view=True)
    ways: list[Callable[[], None]] = [
        lambda: after_backward(nets[0], x, t, device),
        lambda: backward(spread, x, t),
        lambda: backward(nets[2], x, t),
    ]
    times: list[list[float]] = [[] for _ in ways]
    for step in range(options.steps + 2):  # the first two warm up
        for way, found in zip(ways, times, strict=True):
            device.processes.largest(0)  # all begin together
            started = time.perf_counter()
            way()
            device.synchronize()
            if step >= 2:
                found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in times]


def backward(net: nn.Module, x: Tensor, t: Tensor) -> None:
    net.zero_grad()
    net(x, t).square().mean().backward()


def after_backward(net: nn.Module, x: Tensor, t: Tensor, device: Device) -> None:
    """The gradients as the trainer adds them up: joined to one tensor, summed, and copied back."""
    backward(net, x, t)
    gradients = [weight.grad for weight in net.parameters() if weight.grad is not None]
    own = torch.cat([gradient.flatten() for gradient in gradients])
    device.processes.add_up(own)
    for gradient, total in zip(gradients, own.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


if __name__ == "__main__":
    main()
