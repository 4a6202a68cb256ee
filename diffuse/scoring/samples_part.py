"""The samples part of `diffuse eval`: drawn images, or images from any place, against real ones."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.data.images import Dataset
from diffuse.data.sources import SPLITS
from diffuse.options.build import build, build_with
from diffuse.options.dataset import build_named_dataset, default_data_dir
from diffuse.options.schema import EvalConfig
from diffuse.options.score_names import SAMPLE_SCORES
from diffuse.runs.drawing import Drawing
from diffuse.runs.trained import TrainedNetwork
from diffuse.scoring.distances import Statistics
from diffuse.scoring.feature_rows import Rows, read_statistics, write_statistics
from diffuse.scoring.features import Features, key_of
from diffuse.scoring.imagesets import ImageSet, holds_statistics, open_place, open_split, require_pictures
from diffuse.scoring.memorisation import memorisation, pixels_like
from diffuse.scoring.report import Facts, Report, Values, expand_metrics, refuse_changed
from diffuse.scoring.sample_scores import (
    FEW_TO_COMPUTE,
    SCORES,
    Side,
    cached_features,
    compute_score,
    cost_of_real,
    extract_features,
    needed_outputs,
    refuse_unlabelled,
)
from diffuse.system.distributed import Task
from diffuse.system.errors import UsageError
from diffuse.system.files import CONFIGS, data_folder, json_round_trip, sha256
from diffuse.system.progress import log, log_cost
from diffuse.system.sizes import in_words

SAMPLE_SECTION = "sample_scores"  # of eval.json
DEFAULT_N = 10_000


class SamplesPart:
    """The two sides that are compared and the feature network, built and checked.

    network and drawing: the trained network and what draws from it; None where images are given instead.
    """

    def __init__(self, config: EvalConfig, network: TrainedNetwork | None, drawing: Drawing | None):
        self.network, self.drawing, self.reference = network, drawing, config.reference
        self.names = [name for name in expand_metrics(config.metrics) if name in SAMPLE_SCORES]
        self.device = network.device if network else build(config.device, "device", config.trust)
        self.data_dir = data_folder(config.data_dir or (network.config.data_dir if network else default_data_dir()))
        if config.samples is not None:
            self.images = open_images(config.samples, "samples", self.data_dir).limited(config.n)
        else:
            assert network and drawing
            self.images = drawn_images(network, drawing, config.n or DEFAULT_N)
        self.real = self.open_reference()
        offered = {"device": self.device, "data": lambda: self.data, "data_dir": self.data_dir}
        self.features: Features = build_with(config.features, "features", config.trust, **offered)
        width, of_two_sides = self.features.width(self.images.size), [name for name in self.names if name in SCORES]
        if isinstance(self.real, Side) and self.real.known:
            refuse_other_features(self.real.name, self.real.known, self.features, width)
        refuse_unlabelled(of_two_sides, self.images.name, self.images.labels, self.features)
        self.outputs = needed_outputs(of_two_sides, self.features, self.images.count, self.real.count)
        if "memorisation" in self.names:
            self.outputs = sorted({*self.outputs, "features", "pixels"})
            if self.data is None:
                raise UsageError("metrics=[memorisation] needs the data set: give ckpt= or reference=DATASET:SPLIT")
            if self.images.size != self.data.kind.size:
                found, expected = in_words(*self.images.size), in_words(*self.data.kind.size)
                raise UsageError(
                    f"metrics=[memorisation] compares pixels: {self.images.name} has images of {found}, and those of "
                    f"{self.data.kind.name} are {expected}"
                )

    @property
    def tasks(self) -> dict[str, Task]:
        """What other processes compute for it."""
        return {**(self.drawing.tasks if self.drawing else {}), "features": self.features}

    @cached_property
    def data(self) -> Dataset | None:
        """The data set of the run, or the one that the reference names; None where the reference is a path."""
        if self.network:
            return self.network.data
        name, colon, _ = self.reference.partition(":")
        is_name = colon and not Path(self.reference).expanduser().exists()
        return build_named_dataset(name, self.data_dir) if is_name else None

    def open_reference(self) -> ImageSet | Side:
        """The real images: a split of the run's data set, images from any place, or statistics of their features."""
        place, path = self.reference, Path(self.reference).expanduser()
        needs = {name: SCORES[name].real if name in SCORES else "rows" for name in self.names}
        if place in SPLITS:
            if self.data:
                return open_split(self.data.kind, place, self.data.splits[place])
            if {*needs.values()} == {"nothing"}:
                return Side("no others", None)
            raise UsageError(f"reference={place} is a split of a run's data set: give ckpt=, or DATASET:{place}")
        if path.is_file() and holds_statistics(path):
            for name, need in needs.items():
                if need == "rows":
                    raise UsageError(f"metrics=[{name}] needs images, and reference={place} holds mu and sigma")
            return Side(path.name, None, known=read_statistics(path), fingerprint=sha256(path))
        return open_images(place, "reference", self.data_dir)

    def score(self, report: Report) -> None:
        """Draw, extract features and compare; each score is written as soon as it is known."""
        protocol = json_round_trip(self.protocol())
        refuse_changed(report.folder, report.facts.get("sample_protocol", protocol), protocol)
        report.note("sample_protocol", protocol)
        sides = f"{self.images.count:,} images of {self.images.name} against {self.real.name}"
        log.info(f"{sides}: {', '.join(self.names)}")
        rows = Rows(report.folder / "features", {"images": self.images.fingerprint, **self.features.protocol})
        drawn = Side(self.images.name, self.images.count)
        if known := min(map(rows.count, self.outputs)):
            log.info(f"continuing after {known:,} of {self.images.count:,} images")
        if not report.facts["values"].keys() >= {*self.names}:
            self.say_cost(known)
            with report.timed("samples"):
                drawn = extract_features(self.images, self.features, self.outputs, rows)
            if "features" in self.outputs:
                statistics = replace(drawn.statistics("features"), features=self.features.sha256)
                write_statistics(report.folder / "statistics.npz", statistics)
        for name in self.names:
            report.score(SAMPLE_SECTION, name, partial(self.values, name, drawn, report.folder), score_summary)
        shutil.rmtree(report.folder / "features", ignore_errors=True)  # large, and the same seed makes them again

    def say_cost(self, known: int) -> None:
        """Say how long drawing and features will take, where that is long; the features of `known` images are there."""
        left, costs = self.images.count - known, dict[str, float]()
        if left > FEW_TO_COMPUTE:
            if self.drawing and self.network:
                costs[f"drawing {left:,} images"] = self.drawing.seconds(self.network, left)
            costs["their features"] = left / self.features.images_per_second(self.images.size)
        if isinstance(self.real, ImageSet):
            costs |= cost_of_real(self.real, self.features, self.real_outputs, self.data_dir)
        log_cost(costs)

    @property
    def real_outputs(self) -> set[str]:
        """The outputs of the feature network that scores need of the real images."""
        return {SCORES[name].output for name in self.names if name in SCORES and SCORES[name].real != "nothing"}

    @cached_property
    def real_side(self) -> Side:
        """The real images with the features that some score needs."""
        if isinstance(self.real, Side):
            return self.real
        if not self.real_outputs:
            return Side(self.real.name, self.real.count)
        return cached_features(self.real, self.features, self.real_outputs, self.data_dir)

    def values(self, name: str, drawn: Side, folder: Path) -> Values:
        """The values of a score; memorisation also writes a page that shows the nearest training images."""
        if name != "memorisation":
            return compute_score(name, self.features, drawn, self.real_side)
        assert self.data
        kind, vectors = self.data.kind, drawn.vectors
        pixels = pixels_like(kind, vectors["pixels"], drawn.name)
        spaces = {"drawn": {"features": vectors["features"], "pixels": pixels}}
        for split, arrays in self.data.splits.items():
            side = cached_features(open_split(kind, split, arrays), self.features, ["features"], self.data_dir)
            pixels = arrays.images.reshape(len(arrays.images), -1)
            spaces[split] = {"features": side.vectors["features"], "pixels": pixels}
        return memorisation(**spaces, kind=kind, folder=folder, name=self.features.score_name(name))

    def sources(self) -> dict[str, str]:
        """What the values come from beside the network, with the SHA-256 of each."""
        real = self.real.sources() if isinstance(self.real, ImageSet) else {self.reference: str(self.real.fingerprint)}
        return {**self.images.sources(), **real, f"features={self.features.name}": self.features.sha256}

    def protocol(self) -> dict[str, Any]:
        """What the values depend on."""
        images = {"name": self.images.name, "n": self.images.count, "fingerprint": self.images.fingerprint}
        return {
            "samples": {**images, **self.images.facts},
            "reference": {"name": self.real.name, "n": self.real.count, "fingerprint": self.real.fingerprint},
            "features": self.features.protocol,
            "pixels": "8-bit, rounded to the nearest: the values that a PNG file holds",
            "statistics": "float64, covariance with n - 1; kernel distance unbiased",
            "device": self.device.torch.type,
        }


def refuse_other_features(name: str, known: Statistics, features: Features, width: int) -> None:
    """Raise UsageError where statistics come from another feature network than this one, which has `width` features."""
    if len(known.mu) != width or known.features not in (None, features.sha256):
        raise UsageError(
            f"the statistics in {name} are of {len(known.mu)} features of another network: features={features.name} "
            f"with the weights {features.sha256[:12]} has {width}"
        )


def open_images(place: str, key: str, data_dir: Path) -> ImageSet:
    """The images at a path, or those of DATASET:SPLIT."""
    name, colon, split = place.partition(":")
    if (CONFIGS / "dataset" / f"{place}.yaml").exists() and not Path(place).exists():
        raise UsageError(f"{key}={place} is a data set: say which split, {place}:train or {place}:test")
    if not colon or Path(place).expanduser().exists():
        return open_place(place, key)
    if split not in SPLITS:
        raise UsageError(f"{key}={place}: a data set has the splits {' and '.join(SPLITS)}, as in {name}:train")
    data = build_named_dataset(name, data_dir)
    return open_split(data.kind, split, data.splits[split])


def drawn_images(network: TrainedNetwork, drawing: Drawing, n: int) -> ImageSet:
    """The images that a trained network draws: image i of them depends on (seed, i) and the network only."""
    require_pictures(drawing.kind)
    facts = {**drawing.record, "precision": network.formulas.precision(drawing.device)}
    fingerprint = key_of(json.dumps({**facts, "checkpoint": network.sha256}, sort_keys=True))

    def batches(first: int) -> Iterator[np.ndarray]:
        return (pixels.numpy() for _, pixels in drawing.batches(n, network.batch_size, first))

    name = f"{drawing.kind.name} drawn at step {network.step:,}"
    labels = drawing.condition.labels(n)
    return ImageSet(name, n, drawing.kind.size, fingerprint, batches, facts=facts, labels=labels)


def score_summary(name: str, facts: Facts) -> str:
    """A score in a line."""
    labels = {"standard_deviation": "+-", "subset_size": "subsets of", "k": "k =", "fresh_images": "fresh images have"}
    words = [f"{label} {facts[key]:.4g}" for key, label in labels.items() if key in facts]
    counts = f"n {facts['n']}" + (f" against {facts['n_real']}" if facts.get("n_real") else "")
    return f"{name} {facts['value']:.6g}  ({', '.join([*words, counts])})"
