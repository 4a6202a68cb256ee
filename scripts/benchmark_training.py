"""Time a training step of this package against the one of diffusers' training example, on the same network.

    python scripts/benchmark_training.py                          # the default run: digits, unet=tiny, batch 64
    python scripts/benchmark_training.py --unet base --size 32 --channels 3 --batch 8 --steps 4

Both have the same structure and number of weights, data on the device, AdamW, gradient clipping and EMA. Theirs is the
step of diffusers' unconditional example as it stands (float32); ours is what `diffuse train` does by default here. They
take turns, and the medians and their ratio are printed. Needs the dev extra.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from diffuse.cli.task import compose
from diffuse.commands.train import build_training


def our_step(options: argparse.Namespace) -> tuple[Callable[[], None], int, torch.Tensor]:
    """`Trainer.advance` on Gaussian images of the size asked for, the number of weights, and the images."""
    overrides = [
        *(f"unet={options.unet}", f"batch_size={options.batch}", "dataset=gaussian", f"dataset.size={options.size}"),
        *(f"dataset.{moment}={[value] * options.channels}" for moment, value in (("mean", 0.1), ("std", 0.5))),
        *("dataset.train_count=1024", "dataset.test_count=1"),
    ]
    trainer = build_training(compose("train", *overrides)).trainer

    def step() -> None:
        trainer.advance()
        trainer.device.synchronize()

    weights = sum(weight.numel() for weight in trainer.net.parameters())
    return step, weights, torch.from_numpy(trainer.data.train.images)


def their_step(options: argparse.Namespace, images: torch.Tensor) -> tuple[Callable[[], None], int]:
    """The loop body of diffusers' examples/unconditional_image_generation, without its data loader and logging."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = SimpleNamespace(**compose("train", f"unet={options.unet}").unet)
    attends = [options.size >> level in unet.attention for level in range(len(unet.channel_mult))]
    net = UNet2DModel(
        options.size,
        in_channels=options.channels,
        out_channels=options.channels,
        block_out_channels=[unet.channels * factor for factor in unet.channel_mult],
        down_block_types=["AttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        up_block_types=["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        layers_per_block=unet.blocks,
        norm_num_groups=unet.groups,
        attention_head_dim=None,
        dropout=unet.dropout,
    ).to(device)
    optimizer, ema = torch.optim.AdamW(net.parameters(), lr=1e-4), EMAModel(net.parameters(), decay=0.9999)
    scheduler, images = DDPMScheduler(num_train_timesteps=1000), images.to(device)

    def step() -> None:
        clean = images[torch.randint(len(images), (options.batch,), device=device)]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (options.batch,), device=device)
        output = net(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
        torch.nn.functional.mse_loss(output.float(), noise.float()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        if device == "cuda":
            torch.cuda.synchronize()

    return step, sum(weight.numel() for weight in net.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", default="tiny")
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()

    ours, our_weights, images = our_step(options)
    theirs, their_weights = their_step(options, images)
    seconds: dict[str, list[float]] = {"diffuse": [], "diffusers": []}
    for turn in range(options.steps + 3):
        for name, step in (("diffuse", ours), ("diffusers", theirs)):
            started = time.perf_counter()
            step()
            if turn >= 3:  # the first ones warm up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, weights in (("diffuse", our_weights), ("diffusers", their_weights)):
        speed = options.batch / medians[name]
        print(f"{name:10} {weights:>11,} weights  {1000 * medians[name]:8.1f} ms  {speed:9,.1f} images/s")
    print(f"ratio {medians['diffusers'] / medians['diffuse']:.2f}")


if __name__ == "__main__":
    main()
