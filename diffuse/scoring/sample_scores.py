"""The scores of drawn images against real ones: two sides, and a function of both for each score."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.scoring import distances as metrics
from diffuse.scoring.distances import Statistics
from diffuse.scoring.feature_rows import Batch, Rows
from diffuse.scoring.features import ROWS, Features, features_folder, key_of
from diffuse.scoring.imagesets import ImageSet
from diffuse.scoring.report import Values
from diffuse.system.errors import UsageError
from diffuse.system.files import hold_lock, make_folder, slug
from diffuse.system.progress import log

PRECISION_K, DENSITY_K = 3, 5
FEW = 10_000
VERSION = "features 1"  # of what is cached; to be raised with any change of how features are made


@dataclass(frozen=True)
class Side:
    """One of the two sets of images that are compared: its name, how many images it has, their feature vectors.

    rows is None where only the mean and covariance of the features are known, and count then too; fingerprint: what
    changes when an image, or a file of statistics, does; pixels [n, D] where they lie in an array already.
    """

    name: str
    count: int | None
    rows: Rows | None = None
    known: Statistics | None = None
    pixels: np.ndarray | None = None
    fingerprint: str | None = None

    def __getitem__(self, output: str) -> np.ndarray:
        if output == "pixels" and self.pixels is not None:
            return self.pixels
        assert self.rows is not None
        return self.rows[output]

    def statistics(self, output: str) -> Statistics:
        if self.known is not None:
            return self.known
        assert self.rows is not None
        return self.rows.statistics(output)

    def radii(self, k: int) -> np.ndarray:
        assert self.rows is not None
        return self.rows.radii("features", k)


def fid(drawn: Side, real: Side) -> Values:
    return {"fid": {"value": metrics.frechet_distance(drawn.statistics("features"), real.statistics("features"))}}


def sfid(drawn: Side, real: Side) -> Values:
    """FID of the first seven maps of a layer that still knows where things are: Nash et al. 2021, as ADM has it."""
    return {"sfid": {"value": metrics.frechet_distance(drawn.statistics("spatial"), real.statistics("spatial"))}}


def kid(drawn: Side, real: Side) -> Values:
    mean, deviation, size = metrics.kernel_distance(drawn["features"], real["features"])
    facts = {"standard_deviation": deviation, "subsets": metrics.KID_SUBSETS, "subset_size": size}
    return {"kid": {"value": mean, **facts}}


def inception_score(drawn: Side, _: Side) -> Values:
    mean, deviation = metrics.inception_score(drawn["logits"])
    return {"is": {"value": mean, "standard_deviation": deviation, "splits": metrics.IS_SPLITS}}


def precision_recall(drawn: Side, real: Side) -> Values:
    precision, recall = metrics.precision_recall(
        drawn["features"], real["features"], PRECISION_K, real.radii(PRECISION_K)
    )
    return {"precision": {"value": precision, "k": PRECISION_K}, "recall": {"value": recall, "k": PRECISION_K}}


def density_coverage(drawn: Side, real: Side) -> Values:
    density, coverage = metrics.density_coverage(drawn["features"], real["features"], DENSITY_K, real.radii(DENSITY_K))
    return {"density": {"value": density, "k": DENSITY_K}, "coverage": {"value": coverage, "k": DENSITY_K}}


@dataclass(frozen=True)
class Score:
    """output: which of the feature network's it needs; of: (drawn, real) -> its values; least: images of each side.

    real: what of the real side it looks at: its rows, its statistics, or nothing.
    """

    output: str
    of: Callable[[Side, Side], Values]
    real: str = "rows"
    least: int = 2


SCORES = {
    "fid": Score("features", fid, real="statistics"),
    "kid": Score("features", kid),
    "is": Score("logits", inception_score, real="nothing", least=metrics.IS_SPLITS),
    "precision_recall": Score("features", precision_recall, least=PRECISION_K + 1),
    "density_coverage": Score("features", density_coverage, least=DENSITY_K + 1),
    "sfid": Score("spatial", sfid),
}


def needed(names: Collection[str], features: Features) -> list[str]:
    """The outputs that these scores need. Raises UsageError where the feature network does not give them."""
    for name in names:
        output = SCORES[name].output
        if output not in features.outputs:
            raise UsageError(f"metrics=[{name}] cannot be had with features={features.name}: {LACKING[output]}")
    return sorted({SCORES[name].output for name in names})


LACKING = {
    "logits": "it gives no logits of classes (some copies of Inception's weights lack the last layer)",
    "spatial": "it gives no maps from within, which only features=inception does",
}


def described(images: ImageSet, features: Features, outputs: Collection[str], rows: Rows) -> Side:
    """The side of these images, their features added to the rows that are there."""

    def batches(first: int) -> Iterator[Batch]:
        for batch in regrouped(images.batches(first)):
            yield {**features(batch), "pixels": batch.reshape(len(batch), -1)}

    rows.extend(images.count, list(outputs), batches)
    return Side(images.name, images.count, rows)


def regrouped(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same images, as many at a time as a feature network likes: files of large ones come in handfuls."""
    waiting: list[np.ndarray] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= ROWS:
            yield np.concatenate(waiting)
            waiting.clear()
    if waiting:
        yield np.concatenate(waiting)


def described_once(images: ImageSet, features: Features, outputs: Collection[str], data_dir: Path) -> Side:
    """The side of real images, whose features are kept under data_dir for the next time."""
    made_on = {"device": features.device.torch.type, "torch-fidelity": version("torch-fidelity")}
    made_from = {"images": images.fingerprint, **features.protocol, **made_on, "version": VERSION}
    key = key_of(*map(str, made_from.values()))
    folder = features_folder(data_dir) / f"{slug(images.name)}-{slug(features.name)}-{key}"
    make_folder(folder.parent)
    waiting = f"waiting for another process, which is at the features of {images.name}"
    with hold_lock(folder.with_name(f".{folder.name}.lock"), if_taken=lambda: log.info(waiting)):
        return described(images, features, outputs, Rows(folder, made_from))


def refuse_too_few(names: Iterable[str], drawn: int, real: int | None) -> None:
    """Raise UsageError where a score cannot be had of so many drawn images and so many real ones."""
    for name in names:
        least = SCORES[name].least
        if drawn < least or (real is not None and real < least and SCORES[name].real != "nothing"):
            beside = "" if real is None else f" against {real}"
            raise UsageError(f"metrics=[{name}] needs at least {least} images on either side, and has {drawn}{beside}")


def scored(name: str, features: Features, drawn: Side, real: Side) -> Values:
    """The values of a score by their names, each with how many images it comes from and what is to be said of that."""
    sides = {"n": drawn} if SCORES[name].real == "nothing" else {"n": drawn, "n_real": real}
    counts = {key: side.count for key, side in sides.items()}
    found = {}
    for value_name, value in SCORES[name].of(drawn, real).items():
        told = too_few(value_name, drawn, real)
        found[features.score_name(value_name)] = {**value, **counts, **({"warnings": told} if told else {})}
    return found


def too_few(name: str, drawn: Side, real: Side) -> list[str]:
    """What a reader must know of a value from few images."""
    told, least = [], min(side.count for side in (drawn, real) if side.count is not None)
    if name in ("fid", "sfid"):
        width = drawn[SCORES[name].output].shape[1]
        if least <= width:
            told.append(f"{least} images do not determine a covariance of {width} features")
        if least < FEW:
            told.append("biased upwards by its few images: compare it at the same n only")
    if name == "kid" and least <= metrics.KID_SUBSET_SIZE and drawn.count == real.count:
        told.append(f"every subset is all of both sets, of {least} images: the deviation says nothing")
    elif name == "kid" and least < metrics.KID_SUBSET_SIZE:
        told.append(f"subsets of {least} where {metrics.KID_SUBSET_SIZE} are usual: the deviation is not comparable")
    if name == "is" and drawn.count is not None and drawn.count < FEW:
        told.append("biased downwards by its few images: compare it at the same n only")
    if name in ("precision", "recall", "density", "coverage") and (drawn.count != real.count or least < FEW):
        told.append(f"depends on both numbers of images: compare it at {drawn.count} and {real.count} only")
    return told


def values_only(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of scores, by name."""
    return {name: float(facts["value"]) for name, facts in found.items()}
