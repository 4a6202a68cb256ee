"""Where the project stands on this machine's GPU: checks, the benchmark, a profile, in one page.

    make gpu                                             # or: python scripts/gpu.py --budget-minutes 8
    python scripts/gpu.py --rehearse                     # the same on the CPU with tiny sizes, in a minute

Everything that a machine without a GPU cannot try is tried (tests/support/device_checks.py); then training steps and
sampling are timed in the ways that the keys of `device` offer, beside other projects where they are installed; then a
step is profiled by kind of kernel. The page, Markdown and JSON with the date and the device's name, is written into
outputs/gpu/, ready to be put into docs/performance.md. It needs no network. What the budget has no time for is named.
Exit code 1 if a check failed.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import torch  # noqa: E402
from benchmark import ceiling, table  # noqa: E402

from diffuse.cli.task import compose  # noqa: E402
from diffuse.commands.train import build_training  # noqa: E402
from diffuse.system.files import make_new_folder, slug  # noqa: E402
from tests.support.device_checks import CHECKS, Place  # noqa: E402

# (title, arguments of benchmark.py), in the order of their worth
CAPTURE, COMPILE = "device.capture=true", "device.compile=true"
PAPERS = ["--unet", "base", "--size", "32", "--channels", "3"]
WAYS = [
    "device.compile=false",
    f"device.compile=false,{CAPTURE}",
    f"{COMPILE},device.norm=torch",
    f"{COMPILE},{CAPTURE},device.norm=torch",
    f"{COMPILE},{CAPTURE},device.norm=moments",
]
BENCHMARKS = [
    ("training, DDPM's network for CIFAR-10, batch 128", [*PAPERS, "--batch", "128", "--rounds", "3", "--ours", *WAYS]),
    (
        "training, batch 512",
        [*PAPERS, "--batch", "512", "--rounds", "3", "--ours", WAYS[-1], WAYS[0], "--without-peers"],
    ),
    (
        "drawing, 50 DDIM steps, batch 128",
        [*PAPERS, "--batch", "128", "--rounds", "2", "--task", "sampling", "--ours", CAPTURE, ""],
    ),
    ("training, batch 256", [*PAPERS, "--batch", "256", "--rounds", "3", "--ours", WAYS[-1], "--without-peers"]),
    ("training the default run, digits", ["--rounds", "3", "--ours", WAYS[-1], WAYS[0]]),
]
TINY = ["--rounds", "1", "--steps", "2", "--batch", "8", "--without-peers"]
REHEARSED = [
    ("training, rehearsed", [*TINY, "--ours", "", "device.norm=moments"]),
    ("drawing, rehearsed", [*TINY, "--task", "sampling"]),
]
# The first kind whose pattern is in a kernel's name.
KINDS = {
    "fused by the compiler: pointwise": r"^triton_poi",
    "fused by the compiler: norms and reductions": r"^triton_(red|per)",
    "layout and copies": r"nchwto|nhwcto|transpose|copy|memcpy|cat|clone|contiguous",
    "attention": r"flash|attention|fmha|sdpa|softmax",
    "convolutions": r"conv|implicit|wgrad|dgrad|fprop|mkldnn|cudnn",
    "matrix products": r"gemm|nvjet|cutlass|xmma|bmm|addmm|::mm",
    "norms and reductions": r"norm|reduce|_red_|_per_",
    "optimizer and average": r"adam|lerp|multi_tensor|foreach",
    "random numbers": r"random|philox|distribution|bernoulli|rand",
    "pointwise": r"elementwise|vectorized|silu|aten::(add|mul|div|sub)",
}


class Page:
    """The page as it grows: lines of Markdown, and the same facts as JSON."""

    def __init__(self, budget: float, kind: str):
        self.ends, self.kind = time.monotonic() + 60 * budget, kind
        self.lines: list[str] = []
        self.facts: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "failed": [], "left_out": []}

    def add(self, *lines: str) -> None:
        self.lines += lines
        print(*lines, sep="\n", flush=True)

    def has_time(self, what: str, minutes: float) -> bool:
        """Whether so many minutes are left; otherwise what is left out is noted."""
        if time.monotonic() + 60 * minutes < self.ends:
            return True
        self.facts["left_out"].append(what)
        return False

    def write(self, folder: Path) -> Path:
        if self.facts["left_out"]:
            self.add("", "Left out for want of time: " + "; ".join(self.facts["left_out"]) + ".")
        path = folder / f"{slug(self.facts['device'])}.md"
        path.write_text("\n".join(self.lines) + "\n")
        path.with_suffix(".json").write_text(json.dumps(self.facts, indent=1))
        return path


def describe(page: Page, command: str) -> None:
    cuda = page.kind == "cuda"
    name = torch.cuda.get_device_name() if cuda else "the CPU, rehearsed"
    memory = f", {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB" if cuda else ""
    page.facts |= {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}
    page.add(f"## {page.facts['date']}: {name}{memory}", "", f"torch {torch.__version__}, CUDA {torch.version.cuda}.")
    page.add("", f"    {command}", "")


def check(page: Page) -> None:
    """Every check, whatever became of those before."""
    page.add("| check | found | s |", "|---|---|--:|")
    page.facts["checks"] = {}
    for name, function in CHECKS.items():
        started = time.monotonic()
        if not page.has_time(f"check {name}", 0.5):
            continue
        try:
            found = function(Place(page.kind))
        except Exception as error:  # the page says it, and goes on
            found = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
            page.facts["failed"].append(name)
            traceback.print_exc()
        seconds = time.monotonic() - started
        page.facts["checks"][name] = {"found": found, "seconds": seconds}
        page.add(f"| {name} | {found} | {seconds:.0f} |")
        if page.kind == "cuda":
            torch.cuda.empty_cache()


def benchmark(page: Page, limit: float) -> None:
    """Each benchmark in processes of its own, with the ceiling measured here."""
    page.facts["benchmarks"] = {}
    for title, arguments in BENCHMARKS if page.kind == "cuda" else REHEARSED:
        if not page.has_time(title, 1.5 if page.kind == "cuda" else 0):
            continue
        path = ROOT / "outputs" / "gpu" / ".benchmark.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        left = max(30.0, page.ends - time.monotonic())
        line = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *arguments, "--json", str(path)]
        try:
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            page.facts["left_out"].append(f"{title} (was stopped)")
            continue
        if done.returncode:
            page.facts["failed"].append(title)
            page.add("", f"{title}: FAILED", "", *("    " + each for each in done.stderr.splitlines()[-12:]))
            continue
        rows = json.loads(path.read_text())["rows"]
        path.unlink()
        page.facts["benchmarks"][title] = rows
        page.add("", f"### {title}", "", table(rows, limit))


def profile(page: Page, words: list[str]) -> None:
    """The share of each kind of kernel in a few steps, and the longest kernels."""
    from torch.profiler import ProfilerActivity

    trainer = build_training(compose("train", *words)).trainer
    for _ in range(6):
        trainer.advance()
    trainer.device.synchronize()
    cuda = page.kind == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        for _ in range(4):
            trainer.advance()
        trainer.device.synchronize()
    times = Counter[str]()
    for event in found.key_averages():
        times[event.key] += event.self_device_time_total if cuda else event.self_cpu_time_total
    kinds = Counter[str]()
    for name, microseconds in times.items():
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")
        kinds[kind] += microseconds
    total = sum(times.values()) or 1
    page.facts["profile"] = {"words": words, "kinds": kinds, "longest": times.most_common(15)}
    page.add(
        "",
        f"### A step by kind of kernel ({total / 4000:.1f} ms; {' '.join(words)})",
        "",
        "| kind | share |",
        "|---|--:|",
    )
    page.add(*(f"| {kind} | {microseconds / total:.0%} |" for kind, microseconds in kinds.most_common()))
    page.add("", "| longest | share |", "|---|--:|")
    page.add(*(f"| `{name[:90]}` | {microseconds / total:.1%} |" for name, microseconds in times.most_common(8)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-minutes", type=float, default=8)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--out", type=Path, help="the folder for the page (default: a new one in outputs/gpu)")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device here; --rehearse tries everything on the CPU")
    page = Page(options.budget_minutes, "cpu" if options.rehearse else "cuda")
    folder = options.out or make_new_folder(ROOT / "outputs" / "gpu" / f"{datetime.now(UTC):%Y-%m-%d_%H-%M-%S}")
    describe(
        page, f"python scripts/gpu.py --budget-minutes {options.budget_minutes:g}" + " --rehearse" * options.rehearse
    )
    check(page)
    limit = ceiling()
    page.facts["ceiling"] = limit
    page.add("", f"A bfloat16 matrix product: {limit / 1e12:.3g} TFLOP/s.")
    benchmark(page, limit)
    small = ["dataset=digits", "unet=tiny", "batch_size=8", "device=cpu"]
    papers = ["dataset=gaussian", "dataset.size=32", "dataset.mean=[0.1,0.1,0.1]", "dataset.std=[0.5,0.5,0.5]"]
    papers += ["dataset.train_count=2048", "dataset.test_count=1", "unet=base", "batch_size=256", CAPTURE, COMPILE]
    if page.has_time("the profile", 1 if page.kind == "cuda" else 0):
        try:
            profile(page, small if options.rehearse else [*papers, "device=cuda", "device.norm=moments"])
        except Exception:  # the rest of the page counts
            page.facts["failed"].append("profile")
            page.add("", "profile: FAILED", "", *("    " + each for each in traceback.format_exc().splitlines()[-8:]))
    print(f"\npage: {page.write(folder)}")
    return 1 if page.facts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
