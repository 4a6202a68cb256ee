"""The part of `diffuse eval` about samples: drawn images, or images from anywhere, against real ones."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.data.images import Dataset, to_uint8
from diffuse.data.sources import SPLITS
from diffuse.options.build import build, build_named_dataset, build_with, default_data_dir
from diffuse.options.score_names import SAMPLE_SCORES
from diffuse.runs.drawing import Drawing
from diffuse.runs.trained import Prepared
from diffuse.scoring.distances import Statistics
from diffuse.scoring.feature_rows import Rows, read_statistics, write_statistics
from diffuse.scoring.features import Features, key_of
from diffuse.scoring.imagesets import ImageSet, holds_statistics, of_place, of_split, refuse_no_pictures
from diffuse.scoring.memorisation import memorisation
from diffuse.scoring.report import Facts, Report, Values, asked, refuse_other
from diffuse.scoring.sample_scores import SCORES, Side, described, described_once, needed, refuse_too_few, scored
from diffuse.system.device import Device
from diffuse.system.errors import UsageError
from diffuse.system.files import CONFIGS, as_json_gives_it_back, folder_of_data, sha256
from diffuse.system.progress import log

SECTION = "sample_scores"  # of eval.json
DRAWN = 10_000  # images, without n=


class SamplesPart:
    """The two sides that are compared and the features that both are seen by, built and checked."""

    def __init__(self, config: Mapping[str, Any], prepared: Prepared | None):
        self.config, self.prepared, trust = config, prepared, config["trust"]
        self.names = [name for name in asked(config) if name in SAMPLE_SCORES]
        self.device: Device = prepared.device if prepared else build(config["device"], "device", trust)
        self.images = self.opened_samples()
        self.real = self.opened_reference()
        self.features: Features = build_with(
            config["features"], "features", trust, device=self.device, data=lambda: self.data, data_dir=self.data_dir
        )
        width, of_sides = self.features.width(self.images.size), [name for name in self.names if name in SCORES]
        if isinstance(self.real, Side) and self.real.known:
            refuse_other_features(self.real.name, self.real.known, self.features, width)
        refuse_too_few(of_sides, self.images.count, self.real.count)
        self.outputs = needed(of_sides, self.features)
        if "memorisation" in self.names:
            if self.data is None:
                raise UsageError("metrics=[memorisation] needs the data set: give ckpt= or reference=DATASET:SPLIT")
            if self.images.size != self.data.kind.size:
                raise UsageError(
                    f"metrics=[memorisation] compares pixels: {self.images.name} has images of {self.images.size} x "
                    f"{self.images.size}, and those of {self.data.kind.name} are {self.data.kind.size}"
                )
            self.outputs = sorted({*self.outputs, "features", "pixels"})

    @cached_property
    def data(self) -> Dataset | None:
        """The data set of the run, or the one that the reference names; None where it is a path."""
        if self.prepared:
            return self.prepared.data
        name, colon, _ = self.config["reference"].partition(":")
        named = colon and not Path(self.config["reference"]).expanduser().exists()
        return build_named_dataset(name, self.config["data_dir"]) if named else None

    @property
    def data_dir(self) -> Path:
        """Where features are kept."""
        of_run = self.prepared.trained.config["data_dir"] if self.prepared else default_data_dir()
        return folder_of_data(self.config["data_dir"] or of_run)

    def opened_samples(self) -> ImageSet:
        """The images that are scored: n of them, drawn or found."""
        if self.config["samples"] is None:
            assert isinstance(self.prepared, Drawing)
            return drawn(self.prepared, DRAWN if self.config["n"] is None else self.config["n"])
        return opened(self.config["samples"], "samples", str(self.data_dir)).limited(self.config["n"])

    def opened_reference(self) -> ImageSet | Side:
        """The real images: a split of the run's data set, images from anywhere, or statistics of their features."""
        place, path = self.config["reference"], Path(self.config["reference"]).expanduser()
        if place in SPLITS:
            if self.data is None and all(name in SCORES and SCORES[name].real == "nothing" for name in self.names):
                return Side("no others", None)
            if self.data is None:
                raise UsageError(f"reference={place} is a split of a run's data set: give ckpt=, or DATASET:{place}")
            return of_split(self.data.kind, place, self.data.splits[place])
        if path.is_file() and holds_statistics(path):
            for name in self.names:
                if name not in SCORES or SCORES[name].real == "rows":
                    raise UsageError(f"metrics=[{name}] needs images, and reference={place} is read as mu and sigma")
            return Side(path.name, None, known=read_statistics(path), fingerprint=sha256(path))
        return opened(place, "reference", str(self.data_dir))

    def score(self, report: Report) -> None:
        """Draw, describe and compare; each score is written as soon as it is known."""
        protocol = self.protocol()
        refuse_other_protocol(report, protocol)
        report.note("sample_protocol", protocol)
        sides = f"{self.images.count:,} images of {self.images.name} against {self.real.name}"
        log.info(f"{sides}: {', '.join(self.names)}")
        rows = Rows(report.folder / "features", {"images": self.images.fingerprint, **self.features.protocol})
        drawn_side = Side(self.images.name, self.images.count)
        if known := min(map(rows.count, self.outputs)):
            log.info(f"going on after {known:,} of {self.images.count:,} images")
        if any(name not in report.facts["values"] for name in self.names):
            started = time.monotonic()
            try:
                drawn_side = described(self.images, self.features, self.outputs, rows)
            finally:
                report.spent("samples", time.monotonic() - started)
                report.write()
            if "features" in self.outputs:
                found = replace(drawn_side.statistics("features"), features=self.features.sha256)
                write_statistics(report.folder / "statistics.npz", found)
        for name in self.names:
            find = self.remembered if name == "memorisation" else self.compared
            report.add(SECTION, name, partial(find, name, drawn_side, report.folder), told)
        shutil.rmtree(report.folder / "features", ignore_errors=True)  # large, and the seed makes them again

    def compared(self, name: str, drawn_side: Side, _: Path) -> Values:
        """The values of a score of two sides."""
        return scored(name, self.features, drawn_side, self.real_side)

    @cached_property
    def real_side(self) -> Side:
        """The real images, described by the outputs that some score needs of them."""
        if isinstance(self.real, Side):
            return self.real
        outputs = {SCORES[name].output for name in self.names if name in SCORES and SCORES[name].real != "nothing"}
        if not outputs:
            return Side(self.real.name, self.real.count)
        return described_once(self.real, self.features, outputs, self.data_dir)

    def remembered(self, name: str, drawn_side: Side, folder: Path) -> Values:
        """Whether the samples are copies of training images, with a page to look at."""
        assert self.data
        kind, sides = self.data.kind, {}
        for split, arrays in self.data.splits.items():
            side = described_once(of_split(kind, split, arrays), self.features, ["features"], self.data_dir)
            sides[split] = replace(side, pixels=arrays.images.reshape(len(arrays.images), -1))
        return memorisation(drawn_side, **sides, kind=kind, folder=folder, name=self.features.named(name))

    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on."""
        images = {"name": self.images.name, "n": self.images.count, "fingerprint": self.images.fingerprint}
        if isinstance(self.prepared, Drawing):
            images |= protocol_of(self.prepared)
        return {
            "samples": images,
            "reference": {"name": self.real.name, "n": self.real.count, "fingerprint": self.real.fingerprint},
            "features": self.features.protocol,
            "pixels": "8-bit, rounded to the nearest: the values that a PNG file holds",
            "statistics": "float64, covariance with n - 1; kernel distance unbiased",
            "device": self.device.torch.type,
        }


def refuse_other_protocol(report: Report, now: Mapping[str, Any]) -> None:
    """Raise UserError where what was scored before under these keys has changed: images in a folder, or weights."""
    then, today = report.facts.get("sample_protocol"), as_json_gives_it_back(now)
    refuse_other(report.folder, [key for key in today if then and then.get(key) != today[key]])


def refuse_other_features(name: str, known: Statistics, features: Features, width: int) -> None:
    """Raise UsageError where statistics are of another feature network than this one, whose vectors have this width."""
    if len(known.mu) != width or known.features not in (None, features.sha256):
        raise UsageError(
            f"the statistics in {name} are of {len(known.mu)} features of another network: features={features.name} "
            f"with the weights {features.sha256[:12]} has {width}"
        )


def opened(place: str, key: str, data_dir: str | None) -> ImageSet:
    """The images that a path, or DATASET:SPLIT, stands for."""
    name, colon, split = place.partition(":")
    if (CONFIGS / "dataset" / f"{place}.yaml").exists() and not Path(place).exists():
        raise UsageError(f"{key}={place} is a data set: say which split, {place}:train or {place}:test")
    if not colon or Path(place).expanduser().exists():
        return of_place(place, key)
    if split not in SPLITS:
        raise UsageError(f"{key}={place}: a data set has the splits {' and '.join(SPLITS)}, as in {name}:train")
    data = build_named_dataset(name, data_dir)
    return of_split(data.kind, split, data.splits[split])


def drawn(drawing: Drawing, n: int) -> ImageSet:
    """The images that a trained network draws: image i of them depends on (seed, i) and the network alone."""
    refuse_no_pictures(drawing.kind)
    facts = protocol_of(drawing) | {"checkpoint": drawing.trained.sha256}

    def batches(first: int) -> Iterator[np.ndarray]:
        for _, x, _ in drawing.batches(n, first):
            yield to_uint8(x).numpy()

    name = f"{drawing.kind.name} drawn at step {drawing.trained.step:,}"
    return ImageSet(name, n, drawing.kind.size, key_of(json.dumps(facts, sort_keys=True)), batches)


def protocol_of(drawing: Drawing) -> dict[str, Any]:
    """What drawn images depend on, beside the checkpoint."""
    return {
        "sampler": drawing.sampler.record,
        "network_evaluations": drawing.sampler.evaluations,
        "seed": drawing.config["seed"],
        "label": drawing.config["label"],
        "precision": drawing.trained.formulas.precision(drawing.device),
    }


def told(name: str, facts: Facts) -> str:
    """A score in a line."""
    beside = {"standard_deviation": "+-", "subset_size": "subsets of", "k": "k =", "fresh_images": "fresh images have"}
    said = [f"{word} {facts[key]:.4g}" for key, word in beside.items() if key in facts]
    counts = f"n {facts['n']}" + (f" against {facts['n_real']}" if facts.get("n_real") else "")
    return f"{name} {facts['value']:.6g}  ({', '.join([*said, counts])})"
