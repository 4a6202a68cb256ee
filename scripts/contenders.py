"""Whom `scripts/benchmark.py` compares: this package, diffusers and denoising-diffusion-pytorch."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch

# Names of contenders of training and sampling, and of scoring, with the modules that they need.
THEIRS = {
    "diffusers": "diffusers",
    "diffusers bf16": "diffusers",
    "ddp": "denoising_diffusion_pytorch",
}
SCORERS = {"torch-fidelity": "torch_fidelity"}


@dataclass
class Made:
    """A contender in its process: a step, the images of one, and facts that are printed."""

    step: Callable[[], object]
    images: int
    weights: int
    flops: float = 0.0  # of an image


def ours(options: argparse.Namespace, words: list[str]) -> Made:
    """`Trainer.advance` on Gaussian images, or 50 DDIM steps of its sample grids."""
    from torch.utils.flop_counter import FlopCounterMode

    from diffuse.cli.task import compose
    from diffuse.commands.train import build_training

    data = [f"dataset.{moment}={[value] * options.channels}" for moment, value in (("mean", 0.1), ("std", 0.5))]
    training = build_training(
        compose(
            "train",
            *("dataset=gaussian", f"dataset.size={options.size}", "dataset.train_count=2048", "dataset.test_count=1"),
            *(*data, f"unet={options.unet}", f"batch_size={options.batch}", f"images.count={options.batch}"),
            *("steps=100000", "sampler=ddim", "sampler.steps=50", *options.words, *words),
        )
    )
    trainer = training.trainer
    device = trainer.device
    weights = sum(weight.numel() for weight in trainer.net.parameters())
    if options.task == "sampling":
        return Made(lambda: training.shown.drawing.draw(range(options.batch)).cpu(), options.batch, weights)
    from diffuse.training.fitting import choose_norm

    choose_norm(trainer, None)
    training.threads.begin(None)
    counter = FlopCounterMode(display=False)
    flops = 0.0
    if not device.compiles:
        with counter:
            trainer.gradients(trainer.batch(0).first(1))
        trainer.optimizer.zero_grad()
        flops = float(counter.get_total_flops())

    def step() -> None:
        trainer.advance()
        device.synchronize()

    return Made(step, options.batch, weights, flops)


def unet_of(options: argparse.Namespace) -> SimpleNamespace:
    from diffuse.cli.task import compose

    return SimpleNamespace(**compose("train", f"unet={options.unet}", *(w for w in options.words if "unet." in w)).unet)


def where() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def diffusers(options: argparse.Namespace, low: bool) -> Made:
    """The loop body of examples/unconditional_image_generation without its data loader and logging, or its pipeline."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    device, unet = where(), unet_of(options)
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
    weights = sum(weight.numel() for weight in net.parameters())
    if options.task == "sampling":
        pipeline = DDIMPipeline(net, DDIMScheduler(num_train_timesteps=1000))
        pipeline.set_progress_bar_config(disable=True)

        def draw() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=low):
                pipeline(batch_size=options.batch, num_inference_steps=50, output_type="np")

        return Made(draw, options.batch, weights)
    optimizer, ema = torch.optim.AdamW(net.parameters(), lr=1e-4), EMAModel(net.parameters(), decay=0.9999)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    images = torch.randn(2048, options.channels, options.size, options.size, device=device)

    def step() -> None:
        clean = images[torch.randint(len(images), (options.batch,), device=device)]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (options.batch,), device=device)
        with torch.autocast(device, torch.bfloat16, enabled=low):
            output = net(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
        torch.nn.functional.mse_loss(output.float(), noise.float()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        if device == "cuda":
            torch.cuda.synchronize()

    return Made(step, options.batch, weights)


def ddp(options: argparse.Namespace) -> Made:
    """denoising-diffusion-pytorch: its Unet, and the step of its Trainer without accelerate's bookkeeping."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    device, unet = where(), unet_of(options)
    net = Unet(dim=unet.channels, dim_mults=tuple(unet.channel_mult), channels=options.channels, dropout=unet.dropout)
    model = GaussianDiffusion(net, image_size=options.size, timesteps=1000, sampling_timesteps=50).to(device)
    weights = sum(weight.numel() for weight in net.parameters())
    if options.task == "sampling":
        return Made(lambda: model.sample(batch_size=options.batch).cpu(), options.batch, weights)
    optimizer, ema = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.99)), EMA(model)
    images = torch.rand(2048, options.channels, options.size, options.size, device=device)

    def step() -> None:
        model(images[torch.randint(len(images), (options.batch,), device=device)]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        if device == "cuda":
            torch.cuda.synchronize()

    return Made(step, options.batch, weights)


def scoring(options: argparse.Namespace, as_ours: bool) -> Made:
    """The features of Inception, as `diffuse eval` takes them, or as torch-fidelity does: 64 at once, all threads."""
    from diffuse.scoring.features import download_inception, inception
    from diffuse.system.device import Device

    shape = options.batch, 3, options.size, options.size
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.manual_seed(0))
    if as_ours:
        features = inception(Device(where()))
        return Made(lambda: features(images.numpy()), options.batch, 0)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights = str(download_inception())
    net = FeatureExtractorInceptionV3("reference", ["2048"], feature_extractor_weights_path=weights).to(where())

    @torch.no_grad()
    def extract() -> None:
        for part in images.split(64):
            net(part.to(where()))[0].cpu()

    return Made(extract, options.batch, 0)


def made(name: str, options: argparse.Namespace) -> Made:
    if options.task == "scoring":
        return scoring(options, name.startswith("diffuse "))
    if name.startswith("diffuse "):
        return ours(options, [word for word in name.removeprefix("diffuse ").split(",") if word])
    return ddp(options) if name == "ddp" else diffusers(options, name.endswith("bf16"))
