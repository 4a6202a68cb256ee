"""Run every `diffuse ...` line of the README and of docs/, made small, and say which of them fail.

    OMP_NUM_THREADS=1 python scripts/run_pages.py              # all pages, 20 minutes on one core
    OMP_NUM_THREADS=1 python scripts/run_pages.py docs/runs.md

Each page has its own folder, in which its lines run in their order, as they are typed but for the overrides that
SMALL adds, the words that STAND_INS replaces, and files of random images in place of a reader's (`make_files`). A run
that a page takes from another page is made by that page's line. Nothing is downloaded; HOME is a temporary folder. A
line that cannot run here is composed and checked instead, and the reason is printed. Exits 1 if a line failed.

tests/test_pages.py composes and checks the same lines in seconds.
"""

import argparse
import os
import pickle
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from PIL import Image

from diffuse.cli.task import compose
from diffuse.options.score_names import SAMPLE_SCORES

REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = re.compile(r"\s*(?:\w+=\S* )*diffuse(?: |$)")
# The first line of a code block that is a file, after Hydra's own.
FILE_NAME = re.compile(r"(# @package .*\n)?# (?P<name>[\w./-]+\.(py|yaml))\n")
FIRST, TIMEOUT = "README.md", 600
LOGS = ("docs/results.md", "docs/performance.md")  # of each of their lines one job is checked

# What makes a line small: added where the line does not sweep over the key. A run that is continued keeps its own.
SMALL: dict[str, dict[str, str]] = {
    "train": {
        **{"unet.channels": "8", "unet.channel_mult": "[1,1]", "unet.blocks": "1", "unet.groups": "4"},
        **{"unet.heads": "1", "unet.head_channels": "null", "steps": "6", "batch_size": "8", "optim.warmup": "2"},
        **{"log.every": "2", "images.every": "3", "images.count": "4", "checkpoint.every": "3"},
    },
    "sample": {"n": "4"},
    "eval": {"n": "20"},
    "export": {},
}
# The same for keys that are only added where the line has the key (or word) on the left.
SMALL_WHERE: dict[str, dict[str, str]] = {
    "eval.every": {"eval.every": "3", "eval.n": "20", "sampler.steps": "3"},
    "dataset=gaussian": {"dataset.train_count": "64", "dataset.test_count": "20"},
    "hydra.sweeper.n_trials": {"hydra.sweeper.n_trials": "2"},
    "device.processes": {"device.processes": "2"},
}
FREE = ("name", "ckpt", "resume", "data_dir", "samples")  # take any text: lines that differ in these are alike
CHECKED: set[tuple[str, frozenset[str], Path | None]] = set()
COUNTS = ("n", "steps")  # where these are swept, every value becomes small

# Words of pages that stand for a reader's own, and what stands in for them here.
STAND_INS = {
    "ckpt=outputs/predictions/0_...,1_...,...": "ckpt=outputs/predictions/0_loss-simple-prediction-eps",
    "ckpt=outputs/schedules/0_...,outputs/schedules/1_...": "ckpt=outputs/schedules/0_schedule-linear",
    "ckpt=outputs/...": "ckpt=outputs/RUN",
    "name=P-L": "name=eps-hybrid",
    "prediction=P": "prediction=eps",
    "loss=L": "loss=hybrid",
    "ckpt=outputs/P-L": "ckpt=outputs/eps-hybrid",
    "sampler.variance=V": "sampler.variance=fixed_small",
}
# Runs of which no page has the line that makes them.
RUNS = {
    "RUN": ["eval.every=3", "eval.n=20", "sampler.steps=3"],
    "eps-simple": [],
    "eps-hybrid": ["loss=hybrid"],
}
# Inception's weights cannot be downloaded here, so lines that score by it score by the digits' classifier.
NO_INCEPTION = "features=classifier in place of inception"
# Lines that fail on purpose, by a word in them, and their exit codes.
FAIL_ON_PURPOSE = {"optim.lr=1e-3,1e30": 1}
# What a line needs that may not be here, by a word in it: a package, or nothing that could be installed.
PLUGINS = {
    "hydra/launcher=joblib": "hydra_plugins.hydra_joblib_launcher",
    "hydra/launcher=submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "hydra/launcher=submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    "hydra/sweeper=optuna": "hydra_plugins.hydra_optuna_sweeper",
}
PUBLISHED = (
    *("ddpm-cifar10-32", "model-790000.ckpt", "ckpt.pt", "cifar10_uncond_50M_500K.pt", "64x64_diffusion.pt"),
    *("256x256_diffusion.pt", "edm_imagenet64_ema.pt"),
)
NOT_HERE = {
    "hydra/launcher=submitit_slurm": "needs a cluster with Slurm",
    **{f"ckpt={name}": "needs published weights" for name in PUBLISHED},
}


@dataclass(frozen=True)
class Line:
    """A command line of a page: where it stands, the environment variables before it, and its words after `diffuse`."""

    page: str
    number: int
    environment: Mapping[str, str]
    words: list[str]

    @property
    def command(self) -> str:
        return next((word for word in self.words if word in SMALL), "")

    @property
    def overrides(self) -> list[str]:
        return [word for word in self.words if "=" in word and not word.startswith("-")]

    @property
    def option_folders(self) -> list[str]:
        """The folders that -cd names."""
        return [self.words[at + 1] for at, word in enumerate(self.words) if word in ("-cd", "--config-dir")]

    def value(self, key: str) -> str | None:
        """The value that the line gives to a key."""
        found = [word.partition("=")[2] for word in self.overrides if word.partition("=")[0] == key]
        return found[-1] if found else None

    def __str__(self) -> str:
        return f"{self.page}:{self.number}  diffuse {' '.join(self.words)}"


def pages() -> list[Path]:
    """The README, and the pages of docs/."""
    return [REPOSITORY / FIRST, *sorted((REPOSITORY / "docs").glob("*.md"))]


def code_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a page's code blocks, fenced or indented by four spaces, with their numbers from 1 on."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield number, line.strip()


def lines_of(page: Path) -> list[Line]:
    """The `diffuse ...` lines of a page, without comments, lines that end with a backslash joined."""
    found, numbered = [], list(code_lines(page.read_text(encoding="utf-8")))
    for at, (number, text) in enumerate(numbered):
        if not COMMAND.match(text) or (at and numbered[at - 1][1].endswith("\\")):
            continue
        rest = at
        while text.endswith("\\"):
            rest += 1
            text = f"{text[:-1]} {numbered[rest][1]}"
        before, words = [], shlex.split(text, comments=True)
        while words[0] != "diffuse":
            before.append(words.pop(0).partition("="))
        words = [STAND_INS.get(word, word) for word in words[1:]]
        name = str(page.relative_to(REPOSITORY)) if page.is_relative_to(REPOSITORY) else page.name
        found.append(Line(name, number, {key: value for key, _, value in before}, words))
    return found


def files_of(page: Path) -> dict[str, str]:
    """The code blocks of a page that are files: their first line is a comment with the name."""
    blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return {match["name"]: block for block in blocks if (match := FILE_NAME.match(block))}


# Composed and checked


def parsed(overrides: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(overrides)


def values_of(override: Override) -> list[str]:
    """The values that an override goes through, as overrides; those of an interval are its ends."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    return [f"{key}={one}" for one in override.sweep_string_iterator()]


def jobs(line: Line) -> list[list[str]]:
    """The overrides of jobs in which every word of a sweep comes up, and the first of its numbers and paths.

    Not all of their combinations. Overrides of Hydra's own need its plugins, and are left out where these are missing.
    """
    typed = parsed([word for word in line.overrides if not missing_plugin(word)])
    if len(typed) < len(line.overrides):
        typed = [override for override in typed if "hydra" not in override.get_key_element()]
    values = [values_of(override) for override in typed]
    values = [[first, *(one for one in others if not re.search(r"=.*[\d/]", one))] for first, *others in values]
    return [[each[min(at, len(each) - 1)] for each in values] for at in range(max(map(len, values), default=1))]


def missing_plugin(word: str) -> bool:
    """Whether an override needs a plugin of Hydra's that is not installed."""
    return word in PLUGINS and find_spec(PLUGINS[word]) is None


def check(line: Line, folder: Path = REPOSITORY) -> None:
    """Compose the line's configs and check their values. Raises what is wrong with them. folder: where -cd begins."""
    if not line.command:  # --help, --version
        return
    search = [f"hydra.searchpath=[{','.join(f'file://{folder / each}' for each in line.option_folders)}]"]
    for job in jobs(line)[: 1 if line.page in LOGS else None]:
        overrides = {word for word in job if word.partition("=")[0] not in FREE}
        checked = (line.command, frozenset(overrides), folder if line.option_folders else None)
        if checked not in CHECKED:
            compose(line.command, *job, *(search if line.option_folders else []))
            CHECKED.add(checked)


# Made small


def sweeps(value: str) -> bool:
    """Whether a typed value is several: a,b or a function of Hydra's such as interval(a,b)."""
    return any(override.is_sweep_override() for override in parsed([f"key={value}"]))


def small(line: Line) -> list[str]:
    """The line's words with those added that make it small."""
    if not line.command or line.value("resume") or line.words[-1] in ("--help", "-h"):
        return line.words
    added = dict(SMALL[line.command])
    if line.value("edit.interpolate") or line.value("edit.encode"):  # n follows from them
        del added["n"]
    if line.command == "eval" and not scores_samples(line):
        added["n"] = "2"  # of a test split that may be small
    for where, more in SMALL_WHERE.items():
        if line.value(where) or where in line.words:
            added |= more
    words = list(line.words)
    for key in [key for key in added if line.value(key) and sweeps(str(line.value(key)))]:
        value = added.pop(key)
        if key in COUNTS:
            typed = f"{key}={line.value(key)}"
            count = len(values_of(parsed([typed])[0]))
            words[words.index(typed)] = f"{key}={','.join(str(int(value) + number) for number in range(count))}"
    return [*words, *(f"{key}={value}" for key, value in added.items()), *without_inception(line)]


def scores_samples(line: Line) -> bool:
    return bool(set(re.findall(r"\w+", line.value("metrics") or "")) & set(SAMPLE_SCORES))


def without_inception(line: Line) -> list[str]:
    """What a line that scores by Inception's features is given; where no data set is, a classifier's weights too."""
    if line.command != "eval" or not scores_samples(line) or line.value("features") not in (None, "inception"):
        return []
    has_data = line.value("ckpt") or ":" in (line.value("reference") or "")
    return ["features=classifier", *([] if has_data else ["features.weights=CLASSIFIER.pt"])]


# Stand-ins for what is a reader's own


def random_images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def save_images(folder: Path, count: int, side: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for number, pixels in enumerate(random_images(count, side, side, 3, seed=seed)):
        Image.fromarray(pixels).save(folder / f"{number}.png")


def make_files(folder: Path, home: Path) -> None:
    """A reader's files, by the names that pages give them, in a page's folder."""
    save_images(folder / "PHOTOS", 30, 20)
    for seed, name in enumerate(("IMAGES", "FOLDER", "OTHER")):
        save_images(folder / name, 24, 32, seed)
    Image.fromarray(random_images(1, 8, 8)[0]).save(folder / "IMAGE.png")
    Image.fromarray(np.repeat(np.uint8([0, 255]), 32).reshape(8, 8)).save(folder / "MASK.png")
    np.savez(folder / "FILE.npz", random_images(30, 8, 8, 3))
    width = 128  # features of the classifier
    for name in ("stats.npz", "STATISTICS.npz"):
        np.savez(folder / name, mu=np.zeros(width), sigma=np.eye(width))
    np.savetxt(folder / "BETAS.txt", np.linspace(1e-4, 0.02, 200))
    (folder / "DATA").symlink_to(data_dir(home))
    (folder / "CLASSIFIER.pt").symlink_to(next(data_dir(home).glob("features/*.pt")))


def data_dir(home: Path) -> Path:
    return home / ".cache" / "diffuse"


def make_data_sets(home: Path) -> None:
    """A CIFAR-10 and a Fashion-MNIST of a few random images, in torchvision's form and prepared from it."""
    import torchvision.datasets

    from diffuse import cifar10, fashion_mnist

    place = data_dir(home) / "cifar-10-batches-py"
    place.mkdir(parents=True)
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for seed, name in enumerate(batches):
        content = {"data": random_images(20, 3 * 32 * 32, seed=seed), "labels": [i % 10 for i in range(20)]}
        (place / name).write_bytes(pickle.dumps(content))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    official: Any = torchvision.datasets.CIFAR10  # known by hashes that random images do not have
    official.train_list, official.test_list = [[name, None] for name in batches[:5]], [[batches[5], None]]
    official.meta = official.meta | {"md5": None}
    raw = data_dir(home) / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for seed, name in enumerate(("train", "t10k")):
        images = struct.pack(">IIII", 2051, 40, 28, 28) + random_images(40, 28, 28, seed=seed).tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 40) + bytes(i % 10 for i in range(40)))
    for data_set in (cifar10, fashion_mnist):
        data_set(data_dir(home)).train  # noqa: B018  (prepared when it is first asked for)


# Run


@dataclass
class Runner:
    """Runs lines with the real command line in a page's folder, and counts those that fail."""

    home: Path
    made_by: Mapping[str, Line]
    failed: int = 0

    def call(self, words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """`diffuse WORDS` in a new process."""
        path = os.pathsep.join([str(folder / environment.pop("PYTHONPATH", ".")), str(REPOSITORY)])
        return subprocess.run(
            [sys.executable, "-m", "diffuse", *words],
            cwd=folder,
            env={**os.environ, **environment, "HOME": str(self.home), "PYTHONPATH": path, "COLUMNS": "160"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )

    def run(self, line: Line, folder: Path) -> None:
        """Run a line, or check it where it cannot run here, and print what became of it."""
        for word in line.words:
            if missing_plugin(word):
                return self.say("skipped", line, f"{word} needs a plugin that is not installed")
            if word in NOT_HERE:
                check(line, folder)
                return self.say("checked", line, NOT_HERE[word])
        self.make_missing_runs(line, folder)
        started = time.monotonic()
        done = self.call(small(line), folder, **line.environment)
        seconds = f"{time.monotonic() - started:.0f} s"
        expected = next((code for word, code in FAIL_ON_PURPOSE.items() if word in line.words), 0)
        if done.returncode == expected and "Traceback" not in done.stdout:
            replaced = f", {NO_INCEPTION}" if without_inception(line) else ""
            return self.say("ok", line, f"exit {expected} as expected" if expected else seconds + replaced)
        self.failed += 1
        self.say("FAILED", line, f"exit {done.returncode}")
        print(f"  diffuse {shlex.join(small(line))}\n" + done.stdout[-4000:])
        return None

    def make_missing_runs(self, line: Line, folder: Path) -> None:
        """Train, small, what a line takes from outputs/ and no line before it on this page has made."""
        for word in line.overrides:
            for name in re.findall(r"outputs/([\w.-]+)", word):
                if not (folder / "outputs" / name).exists():
                    maker = self.made_by.get(name, Line("", 0, {}, ["train", f"name={name}", *RUNS.get(name, [])]))
                    done = self.call(small(maker), folder)
                    if done.returncode:
                        print(f"outputs/{name} could not be made: {done.stdout[-2000:]}")

    def say(self, what: str, line: Line, why: str) -> None:
        print(f"{what:8}{line}   ({why})", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("pages", nargs="*", type=Path)
    chosen = [page.resolve() for page in options.parse_args().pages] or pages()
    trainings = [line for page in pages() for line in lines_of(page) if line.command == "train"]
    single = [line for line in reversed(trainings) if "-m" not in line.words and not line.value("resume")]
    made_by = {name: line for line in single if (name := line.value("name"))}
    with tempfile.TemporaryDirectory() as place:
        runner = Runner(Path(place, "home"), made_by)
        make_data_sets(runner.home)
        digits = ["eval", "samples=digits:test", "reference=digits:train", "metrics=[fid]", "features=classifier"]
        classifier = runner.call(digits, runner.home)  # which this makes and keeps
        if classifier.returncode:
            raise SystemExit(classifier.stdout)
        count = 0
        for page in chosen:
            folder = Path(place, page.stem)
            folder.mkdir()
            make_files(folder, runner.home)
            for name, content in files_of(page).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(content, encoding="utf-8")
            for line in lines_of(page):
                runner.run(line, folder)
                count += 1
    print(f"{count} lines, {runner.failed} failed")
    raise SystemExit(1 if runner.failed else 0)


if __name__ == "__main__":
    main()
