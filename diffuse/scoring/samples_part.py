"""The part of `diffuse eval` about samples: drawn images, or images from anywhere, against real ones."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.data.images import Dataset, to_uint8
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
from diffuse.scoring.imagesets import ImageSet, holds_statistics, of_place, of_split, refuse_no_pictures
from diffuse.scoring.memorisation import memorisation
from diffuse.scoring.report import Facts, Report, Values, refuse_changed, requested
from diffuse.scoring.sample_scores import SCORES, Side, described, described_once, needed, refuse_too_few, scored
from diffuse.system.device import Device
from diffuse.system.errors import UsageError
from diffuse.system.files import CONFIGS, data_folder, json_round_trip, sha256
from diffuse.system.progress import log

SAMPLE_SECTION = "sample_scores"  # of eval.json
DRAWN = 10_000  # images, without n=


class SamplesPart:
    """The two sides that are compared and the features that both are seen by, built and checked.

    network and drawing: the trained network, and what draws from it; None where images are given instead.
    """

    def __init__(self, config: EvalConfig, network: TrainedNetwork | None, drawing: Drawing | None):
        self.network, self.drawing, self.reference = network, drawing, config.reference
        self.names = [name for name in requested(config.metrics) if name in SAMPLE_SCORES]
        self.device: Device = network.device if network else build(config.device, "device", config.trust)
        self.data_dir = data_folder(config.data_dir or (network.config.data_dir if network else default_data_dir()))
        self.images = self.open_samples(config.samples, config.n)
        self.real = self.open_reference()
        offered = {"device": self.device, "data": lambda: self.data, "data_dir": self.data_dir}
        self.features: Features = build_with(config.features, "features", config.trust, **offered)
        width, of_sides = self.features.width(self.images.size), [name for name in self.names if name in SCORES]
        if isinstance(self.real, Side) and self.real.known:
            refuse_other_features(self.real.name, self.real.known, self.features, width)
        refuse_too_few(of_sides, self.images.count, self.real.count)
        self.outputs = needed(of_sides, self.features)
        if "memorisation" in self.names:
            self.check_memorisation()
            self.outputs = sorted({*self.outputs, "features", "pixels"})

    def check_memorisation(self) -> None:
        """Raise UsageError where there is no training set whose copies could be looked for."""
        if self.data is None:
            raise UsageError("metrics=[memorisation] needs the data set: give ckpt= or reference=DATASET:SPLIT")
        if self.images.size != self.data.kind.size:
            raise UsageError(
                f"metrics=[memorisation] compares pixels: {self.images.name} has images of {self.images.size} x "
                f"{self.images.size}, and those of {self.data.kind.name} are {self.data.kind.size}"
            )

    @cached_property
    def data(self) -> Dataset | None:
        """The data set of the run, or the one that the reference names; None where it is a path."""
        if self.network:
            return self.network.data
        name, colon, _ = self.reference.partition(":")
        named = colon and not Path(self.reference).expanduser().exists()
        return build_named_dataset(name, self.data_dir) if named else None

    def open_samples(self, place: str | None, n: int | None) -> ImageSet:
        """The images that are scored: n of them, drawn or found."""
        if place is not None:
            return open_images(place, "samples", self.data_dir).limited(n)
        assert self.network and self.drawing
        return drawn_images(self.network, self.drawing, DRAWN if n is None else n)

    def open_reference(self) -> ImageSet | Side:
        """The real images: a split of the run's data set, images from anywhere, or statistics of their features."""
        place, path = self.reference, Path(self.reference).expanduser()
        if place in SPLITS:
            if self.data is None and all(name in SCORES and SCORES[name].real == "nothing" for name in self.names):
                return Side("no others", None)
            if self.data is None:
                raise UsageError(f"reference={place} is a split of a run's data set: give ckpt=, or DATASET:{place}")
            return of_split(self.data.kind, place, self.data.splits[place])
        if path.is_file() and holds_statistics(path):
            for name in self.names:
                if name not in SCORES or SCORES[name].real == "rows":
                    raise UsageError(f"metrics=[{name}] needs images, and reference={place} holds mu and sigma")
            return Side(path.name, None, known=read_statistics(path), fingerprint=sha256(path))
        return open_images(place, "reference", self.data_dir)

    def score(self, report: Report) -> None:
        """Draw, describe and compare; each score is written as soon as it is known."""
        protocol = self.protocol()
        refuse_other_protocol(report, protocol)
        report.note("sample_protocol", protocol)
        sides = f"{self.images.count:,} images of {self.images.name} against {self.real.name}"
        log.info(f"{sides}: {', '.join(self.names)}")
        rows = Rows(report.folder / "features", {"images": self.images.fingerprint, **self.features.protocol})
        drawn = Side(self.images.name, self.images.count)
        if known := min(map(rows.count, self.outputs)):
            log.info(f"going on after {known:,} of {self.images.count:,} images")
        if not all(map(report.has, self.names)):
            with report.timed("samples"):
                drawn = described(self.images, self.features, self.outputs, rows)
            if "features" in self.outputs:
                statistics = replace(drawn.statistics("features"), features=self.features.sha256)
                write_statistics(report.folder / "statistics.npz", statistics)
        for name in self.names:
            if not report.has(name):
                with report.timed(name):
                    if name == "memorisation":
                        found = self.memorised(drawn, report.folder)
                    else:
                        found = scored(name, self.features, drawn, self.real_side)
                report.add(SAMPLE_SECTION, name, found)
            report.say(SAMPLE_SECTION, name, score_summary)
        shutil.rmtree(report.folder / "features", ignore_errors=True)  # large, and the seed makes them again

    @cached_property
    def real_side(self) -> Side:
        """The real images, described by the outputs that some score needs of them."""
        if isinstance(self.real, Side):
            return self.real
        outputs = {SCORES[name].output for name in self.names if name in SCORES and SCORES[name].real != "nothing"}
        if not outputs:
            return Side(self.real.name, self.real.count)
        return described_once(self.real, self.features, outputs, self.data_dir)

    def memorised(self, drawn: Side, folder: Path) -> Values:
        """Whether the samples are copies of training images, with a page to look at."""
        assert self.data
        kind, sides = self.data.kind, {}
        for split, arrays in self.data.splits.items():
            side = described_once(of_split(kind, split, arrays), self.features, ["features"], self.data_dir)
            sides[split] = replace(side, pixels=arrays.images.reshape(len(arrays.images), -1))
        name = self.features.score_name("memorisation")
        return memorisation(drawn, **sides, kind=kind, folder=folder, name=name)

    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on."""
        images = {"name": self.images.name, "n": self.images.count, "fingerprint": self.images.fingerprint}
        if self.network and self.drawing:
            images |= drawing_protocol(self.network, self.drawing)
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
    then, today = report.facts.get("sample_protocol"), json_round_trip(now)
    refuse_changed(report.folder, [key for key in today if then and then.get(key) != today[key]])


def refuse_other_features(name: str, known: Statistics, features: Features, width: int) -> None:
    """Raise UsageError where statistics are of another feature network than this one, whose vectors have this width."""
    if len(known.mu) != width or known.features not in (None, features.sha256):
        raise UsageError(
            f"the statistics in {name} are of {len(known.mu)} features of another network: features={features.name} "
            f"with the weights {features.sha256[:12]} has {width}"
        )


def open_images(place: str, key: str, data_dir: Path) -> ImageSet:
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


def drawn_images(network: TrainedNetwork, drawing: Drawing, n: int) -> ImageSet:
    """The images that a trained network draws: image i of them depends on (seed, i) and the network alone."""
    refuse_no_pictures(drawing.kind)
    facts = drawing_protocol(network, drawing) | {"checkpoint": network.sha256}

    def batches(first: int) -> Iterator[np.ndarray]:
        for _, x, _ in drawing.batches(n, network.batch_size, first):
            yield to_uint8(x).numpy()

    name = f"{drawing.kind.name} drawn at step {network.step:,}"
    return ImageSet(name, n, drawing.kind.size, key_of(json.dumps(facts, sort_keys=True)), batches)


def drawing_protocol(network: TrainedNetwork, drawing: Drawing) -> dict[str, Any]:
    """What drawn images depend on, beside the checkpoint."""
    return {**drawing.record, "precision": network.formulas.precision(drawing.device)}


def score_summary(name: str, facts: Facts) -> str:
    """A score in a line."""
    beside = {"standard_deviation": "+-", "subset_size": "subsets of", "k": "k =", "fresh_images": "fresh images have"}
    words = [f"{word} {facts[key]:.4g}" for key, word in beside.items() if key in facts]
    counts = f"n {facts['n']}" + (f" against {facts['n_real']}" if facts.get("n_real") else "")
    return f"{name} {facts['value']:.6g}  ({', '.join([*words, counts])})"
