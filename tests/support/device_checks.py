"""What must hold on a device beside the CPU: functions of the place, which raise AssertionError where it does not.

`scripts/gpu.py` runs them and writes what they found; so do the tests, on the CPU, and on CUDA if there is one.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffuse.cli.task import compose
from diffuse.commands.train import build_training
from diffuse.networks.dropout import Dropout
from diffuse.networks.norm import NORMS
from diffuse.runs import checkpoint
from diffuse.system.device import Device
from diffuse.training.fitting import does_not_fit, fits
from diffuse.training.trainer import NotFinite, Trainer

SMALL = [
    "recipe=folder",
    "unet=tiny",
    "optim.lr=3e-3",
    "unet.dropout=0.1",
    "batch_size=32",
    "optim.warmup=2",
    "steps=20",
]


@dataclass(frozen=True)
class Place:
    """A device and whether it records CUDA graphs and compiles, as words of a command line."""

    kind: str

    def words(self, *more: str) -> list[str]:
        return [f"device={self.kind}", *more]

    @property
    def fast(self) -> list[list[str]]:
        """The ways to compute a step that are compared with the plain one."""
        if self.kind != "cuda":
            return [["device.norm=moments"], ["device.recompute=true"]]
        capture, compiled = "device.capture=true", "device.compile=true"
        moments, low = "device.norm=moments", "device.precision=bfloat16"
        alone = [[capture], [moments], [capture, "device.recompute=true"], [compiled], [low], [low, capture]]
        return [*alone, [compiled, capture], [compiled, capture, moments], [low, compiled, capture, moments]]


def trainer_of(place: Place, *words: str) -> Trainer:
    plain = ["device.compile=false", "device.precision=float32"]
    chosen = {word.partition("=")[0] for word in words}
    return build_training(
        compose(
            "train", *SMALL, *place.words(), *(word for word in plain if word.partition("=")[0] not in chosen), *words
        )
    ).trainer


def losses_of(trainer: Trainer, steps: int = 8) -> list[float]:
    """The reported loss of each of some steps."""
    found = []
    for _ in range(steps):
        trainer.advance()
        found.append(trainer.report()["loss"])
    return found


def near(found: list[float], expected: list[float], share: float) -> str:
    """The largest relative difference, in words. Raises AssertionError where it is above a share."""
    assert all(map(math.isfinite, [*found, *expected])), f"NaN or infinite: {found} against {expected}"
    largest = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
    assert largest <= share, f"off by {largest:.2g}, more than {share:g}: {found} against {expected}"
    return f"{largest:.1g}"


def norms(place: Place) -> str:
    """Both ways to compute a group norm, forward and backward, in channels-last, against float64 on the CPU."""
    x = torch.randn(4, 32, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    off = {}
    for name, formula in NORMS.items():
        results = []
        for device, kind in (("cpu", torch.float64), (place.kind, torch.float32)):
            leaf = x.to(device, kind).to(memory_format=torch.channels_last).requires_grad_()
            out = formula(
                leaf, 8, torch.ones(32, device=device, dtype=kind), torch.zeros(32, device=device, dtype=kind), 1e-6
            )
            (gradient,) = torch.autograd.grad(out.square().sum() + out.sin().sum(), leaf)
            results.append((out.detach().cpu().double(), gradient.cpu().double()))
        off[name] = float(torch.stack([(a - b).abs().max() for a, b in zip(*results, strict=True)]).max())  # keeps NaN
        assert off[name] < 1e-3, f"{name} is off by {off[name]:.2g}"
    return ", ".join(f"{name} off by {value:.1g}" for name, value in off.items())


def dropout(place: Place) -> str:
    """The masks of given keys are those on the CPU, bit for bit."""
    keys = torch.randint(-(2**31), 2**31, (6, 2), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    masks = []
    for device in ("cpu", place.kind):
        layer = Dropout(0.3)
        layer.keys = keys.to(device)
        masks.append((layer(torch.ones(6, 8, 9, 9, device=device)) == 0).cpu())
    assert torch.equal(*masks)
    return "equal"


def network(place: Place) -> str:
    """A network's output in float32 against the CPU's."""
    trainer = trainer_of(Place("cpu"))
    for weight in trainer.net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    net = trainer.net.eval()
    x, time = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(4.0) * 100
    there = Device(place.kind, "float32")
    with torch.no_grad():
        expected = net(x, time)
        found = there.network(there.place(net))(x.to(place.kind), time.to(place.kind), None).cpu()
    off = float((found - expected).abs().max() / expected.abs().max())
    assert off < 1e-3, f"off by {off:.2g}"
    return f"off by {off:.1g}"


def steps(place: Place) -> str:
    """The losses of eight steps, computed in each of the fast ways, against those of the plain float32 step."""
    plain, found = losses_of(trainer_of(place)), []
    for words in place.fast:
        share = 2e-2 if any("compile" in word or "bfloat16" in word for word in words) else 2e-3
        trainer = trainer_of(place, *words)
        found.append(f"{' '.join(words)} {near(losses_of(trainer), plain, share)}")
        assert not trainer.device.captures or trainer._computed.recorded, f"{' '.join(words)}: nothing was recorded"
    return "largest relative difference: " + ", ".join(found)


def parts(place: Place) -> str:
    """A batch in four parts gives the same losses."""
    return near(losses_of(trainer_of(place, "grad_accumulation=4")), losses_of(trainer_of(place)), 2e-3)


def resuming(place: Place) -> str:
    """A run that is saved and continued has the losses of one that was not interrupted; a CPU reads it too."""
    found = []
    for words in ([], place.fast[0]):
        whole = trainer_of(place, *words)
        expected = losses_of(whole)
        first = trainer_of(place, *words)
        losses_of(first, 4)
        with tempfile.TemporaryDirectory() as folder:
            first.save(Path(folder) / "step_00000004.pt")
            stored = checkpoint.load_checkpoint(Path(folder) / "step_00000004.pt")
            for other in (trainer_of(place, *words), trainer_of(Place("cpu"))):
                other.restore(stored)
                if other.device.torch.type == place.kind:
                    found.append(near(losses_of(other, 4), expected[4:], 2e-3))
                else:
                    assert other.step == 4
    return ", ".join(found)


def failing(place: Place) -> str:
    """A step whose loss is NaN is named, and changes nothing; neither does any after it."""
    for words in ([], place.fast[0]):
        trainer = trainer_of(place, *words)
        losses_of(trainer, 5)
        with torch.no_grad():
            kept = trainer.net.head.bias.clone()
            trainer.net.head.bias.fill_(torch.nan)
        before = [weight.detach().clone() for weight in list(trainer.net.parameters())[:-1]]
        named = -1
        try:
            for _ in range(3):
                trainer.advance()
            trainer.refuse_failure()
        except NotFinite as failure:
            named = failure.step
        assert named == 5, f"step {named} is named, and step 5 failed"
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.net.parameters(), strict=False))
        del kept
    return "step 5 named, no weight changed"


def memory(place: Place) -> str:
    """Where a batch does not fit, the message names parts that do."""
    if place.kind != "cuda":
        return "CUDA alone says that memory is too small"
    words = ["unet=small", "batch_size=1024", "dataset=gaussian", "dataset.size=32", "dataset.train_count=1024"]
    trainer = trainer_of(place, *words, "dataset.test_count=2", "dataset.mean=[0.1]", "dataset.std=[0.5]")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_allocated() + 3 * 2**30) / total))
    try:
        message = "" if fits(trainer.advance) else str(does_not_fit(trainer))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "grad_accumulation=" in message, message or "1,024 images fit into 3 GiB"
    return message.partition("\n")[2].partition(" does")[0]


def command_line(place: Place) -> str:
    """`diffuse train`, continued, then `sample` with several samplers and `eval`, from the shell."""
    fast = ["device.capture=true"] if place.kind == "cuda" else []
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def call(*words: str) -> None:
        line = [sys.executable, "-m", "diffuse", *words, *place.words()]
        done = subprocess.run(line, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr[-1500:]}"

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        more = [
            "unet=tiny",
            "log.every=5",
            "images.count=4",
            "images.every=30",
            "sampler.steps=4",
            "checkpoint.every=10",
        ]
        call("train", "name=run", "steps=10", "optim.decay=none", *more, *fast)
        call("train", "name=run", "steps=30", "optim.decay=none", *more, *fast)
        for sampler in ("ddpm", "unipc", "ode"):
            few = [] if sampler == "ode" else ["sampler.steps=5"]
            call(
                "sample",
                "ckpt=outputs/run",
                f"sampler={sampler}",
                *few,
                "n=9",
                f"name={sampler}",
                "trajectory=false",
                *fast,
            )
        call(
            "eval",
            "ckpt=outputs/run",
            "n=64",
            "sampler=ddim",
            "sampler.steps=5",
            "name=e",
            "metrics=[fid,bound]",
            "features=classifier",
            "levels=5",
        )
        lines = Path("outputs/run/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines][-1] == 30
    return "train, resume, 3 samplers, eval"


def processes(place: Place) -> str:
    """Two processes, each on its own device, against one that computes the same parts; captured too, on CUDA."""
    if place.kind == "cuda" and torch.cuda.device_count() < 2:
        return "not tried: there is one GPU"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    few = ["log.every=4", "images.every=8", "images.count=4", "sampler.steps=3", "checkpoint.every=8"]
    words = [*SMALL, "steps=8", *few, "parts=2", "device.precision=float32", "device.compile=false", *place.words()]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for fast in ([], ["device.capture=true"]) if place.kind == "cuda" else ([],):
            for count in (1, 2):
                name = f"{count}-{len(fast)}"
                more = [f"device.processes={count}", "device.threads=1", f"name={name}", *fast]
                line = [sys.executable, "-m", "diffuse", "train", *words, *more]
                done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr[-1500:]
                lines = (Path(folder) / "outputs" / name / "metrics.jsonl").read_text().splitlines()
                found[name] = [json.loads(line)["loss"] for line in lines]
    return f"off by {max(near(each, found['1-0'], 1e-4) for each in found.values())}"


def drawing(place: Place) -> str:
    """Eight DDIM steps, with the network's calls recorded and not, against the CPU; the same noise everywhere."""
    from diffuse.mathematics.denoiser import Denoiser
    from diffuse.mathematics.samplers.ddim import ddim
    from diffuse.mathematics.spacings import time_grid
    from diffuse.mathematics.tables import linear

    torch.manual_seed(0)
    net = trainer_of(Place("cpu")).net.eval().requires_grad_(False)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    x, schedule = torch.randn(6, 1, 8, 8), linear()

    def drawn(device: Device) -> Tensor:
        denoiser = Denoiser(device.network(device.place(net)), schedule)
        with torch.no_grad():
            for _ in range(5):  # a recorded call is replayed from the fourth on
                *_, found = ddim(denoiser, x.to(device.torch), time_grid(schedule, 8))
        return found.cpu()

    expected = drawn(Device("cpu", "float32"))
    captures = [None, True] if place.kind == "cuda" else [None]
    found = [drawn(Device(place.kind, "float32", capture=capture)) for capture in captures]
    off = float(torch.stack([(each - expected).abs().max() / expected.abs().max() for each in found]).max())
    assert off < 2e-2, f"off by {off:.2g}"
    return f"off by {off:.1g}"


CHECKS: dict[str, Callable[[Place], str]] = {
    check.__name__: check
    for check in (norms, dropout, network, steps, parts, resuming, failing, memory, drawing, command_line, processes)
}
