"""How fast this package trains and draws, side by side with diffusers and denoising-diffusion-pytorch.

    python scripts/benchmark.py                                        # the default run: digits, unet=tiny, batch 64
    python scripts/benchmark.py --unet base --size 32 --channels 3 --batch 64 --steps 2       # DDPM's for CIFAR-10
    python scripts/benchmark.py --task sampling --rounds 3
    python scripts/benchmark.py --task scoring --size 32 --batch 128        # Inception's features, and torch-fidelity
    python scripts/benchmark.py --curves cost.png                      # ours against batch, width and resolution

Each contender runs in a process of its own, as its users run it (how memory is kept is a process's affair), and they
take turns in every round; the medians over the rounds are printed, with their ratios. All have data on the device,
AdamW, gradient clipping and EMA. diffusers has the same structure and number of weights: its unconditional example as
it stands, in float32, and in bfloat16. denoising-diffusion-pytorch (ddp) has its own network of the same width, whose
weights are told. Contenders that are not installed are left out. Ours is what `diffuse train` and `diffuse sample` do
by default here; `--words device.capture=true ...` changes that, and `--ours A B` compares ours with itself, each of
them words joined by commas.

The share of the ceiling is that of the matrix product measured beside: the forward and backward pass of an image,
counted by torch, times images a second.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from contenders import SCORERS, THEIRS, made, unet_of, where


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["training", "sampling", "scoring"], default="training")
    parser.add_argument("--unet", default="tiny")
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=0, help="training steps in a round (0: 2 seconds of them)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--words", nargs="*", default=[], help="of our command line, such as device.compile=false")
    parser.add_argument("--ours", nargs="*", default=[""], help="variants of ours: words joined by commas")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--json", type=Path, help="write what was measured here too")
    parser.add_argument("--curves", type=Path, help="draw ours against batch, width and resolution into this picture")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def work(options: argparse.Namespace) -> None:
    """A contender's process: prints its facts, and for each number that it reads the seconds of so many steps."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    contender = made(options.worker, options)
    for _ in range(5 if options.task == "training" else 1):  # the first ones warm up, compile and record
        contender.step()
    started = time.perf_counter()
    contender.step()
    facts = {"images": contender.images, "weights": contender.weights, "flops": contender.flops}
    print(json.dumps({**facts, "seconds": time.perf_counter() - started}), file=out, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            contender.step()
        print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak()}), file=out, flush=True)


def peak() -> int:
    """The most memory that this process had, in bytes: the device's, or on a CPU the system's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Process:
    """A contender in its own process."""

    def __init__(self, name: str, arguments: list[str]):
        line = [sys.executable, __file__, *arguments, "--worker", name]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name, self.seconds = name, list[float]()
        self.facts = self.answer()
        self.steps = 1

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} failed")
        return dict(json.loads(line))

    def turn(self) -> None:
        assert self.process.stdin
        print(self.steps, file=self.process.stdin, flush=True)
        answer = self.answer()
        self.seconds.append(answer["seconds"] / self.steps)
        self.facts["peak"] = answer["peak"]

    def end(self) -> dict[str, Any]:
        """What was measured."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
        seconds = statistics.median(self.seconds)
        return {"name": self.name.strip(), **self.facts, "seconds": seconds, "speed": self.facts["images"] / seconds}


def compared(names: list[str], options: argparse.Namespace, arguments: list[str]) -> list[dict[str, Any]]:
    """What was measured of each contender, all of them in turn."""
    processes = [Process(name, arguments) for name in names]
    for process in processes:
        process.steps = options.steps or max(1, round(2 / process.facts["seconds"]))
    for _ in range(options.rounds):
        for process in processes:
            process.turn()
    return [process.end() for process in processes]


def ceiling() -> float:
    """FLOP/s of a matrix product on this device, in bfloat16 or float32, whichever is faster."""
    return max(product_speed(precision) for precision in (torch.bfloat16, torch.float32))


def product_speed(precision: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    device = where()
    side, calls = (8192, 30) if device == "cuda" else (2048, 6)
    a, b = (torch.randn(side, side, device=device, dtype=precision) for _ in range(2))

    def seconds() -> float:
        started = time.perf_counter()
        for _ in range(calls):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / calls

    return 2 * side**3 / min(seconds() for _ in range(4))


def table(rows: list[dict[str, Any]], limit: float) -> str:
    """Markdown, ours first; the last column is how many times ours is faster."""
    flops = max(row["flops"] for row in rows)
    head = ["", "weights", "ms a step", "images/s", "peak memory", "share of the ceiling", "ours is faster by"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for row in rows:
        share = f"{flops * row['speed'] / limit:.0%}" if flops and row["name"].startswith("diffuse") and limit else ""
        cells = [row["name"], f"{row['weights']:,}", f"{1e3 * row['seconds']:.1f}", f"{row['speed']:,.1f}"]
        cells += [f"{row.get('peak', 0) / 2**30:.1f} GiB", share, f"{rows[0]['speed'] / row['speed']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curves(options: argparse.Namespace, arguments: list[str]) -> None:
    """Images a second of ours against batch, width and resolution, one at a time from the sizes given."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    unet = unet_of(options)
    varied = {
        "batch": [(b, ["--batch", str(b)]) for b in (16, 32, 64, 128, 256)],
        "channels": [(c, ["--words", f"unet.channels={c}"]) for c in (32, 64, 128, 192) if c % unet.groups == 0],
        "pixels a side": [
            (s, ["--size", str(s)]) for s in (8, 16, 32, 64) if s % 2 ** (len(unet.channel_mult) - 1) == 0
        ],
    }
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, 3, sharey=True), varied.items(), strict=True):
        found = [compared(["diffuse "], options, [*arguments, *changed])[0]["speed"] for _, changed in values]
        axes.loglog([value for value, _ in values], found, "o-")
        axes.set_xticks([value for value, _ in values], [str(value) for value, _ in values])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=name, ylabel="images/s" if name == "batch" else "")
        print(f"{name}: " + ", ".join(f"{value} {speed:,.1f}" for (value, _), speed in zip(values, found, strict=True)))
    figure.savefig(options.curves)


def main() -> None:
    options, arguments = options_of(), sys.argv[1:]
    if options.worker is not None:
        work(options)
        return
    if options.curves:
        curves(options, arguments)
        return
    rivals = {} if options.without_peers else SCORERS if options.task == "scoring" else THEIRS
    peers = [name for name, module in rivals.items() if find_spec(module)]
    rows = compared([f"diffuse {variant}" for variant in options.ours] + peers, options, arguments)
    limit = ceiling() if options.task == "training" else 0.0
    print(table(rows, limit))
    if limit:
        print(f"\nthe ceiling, a matrix product: {limit / 1e12:.3g} TFLOP/s")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "ceiling": limit, "options": arguments}, indent=1))


if __name__ == "__main__":
    main()
