"""The scores of drawn images against real ones: two sides, and one function of both for each score."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.scoring import distances
from diffuse.scoring.distances import Statistics, frechet_distance
from diffuse.scoring.feature_rows import Rows, Vectors, kept_rows
from diffuse.scoring.features import FEATURE_BATCH, Features, features_folder, key_of, own_features_folder
from diffuse.scoring.imagesets import ImageSet
from diffuse.scoring.report import Values
from diffuse.system.errors import UsageError
from diffuse.system.files import hold_lock, may_write, slug
from diffuse.system.progress import log

PRECISION_K, DENSITY_K = 3, 5
FEW = 10_000
FEATURES_VERSION = "features 1"  # of cached features; to be raised with any change of how they are computed
FEW_TO_COMPUTE = 256  # images whose features need no forecast
MISSING_OUTPUT = {
    "logits": "it has no class logits (some copies of Inception's weights lack the last layer)",
    "spatial": "only features=inception gives maps of an inner layer",
}


@dataclass(frozen=True)
class Side:
    """One of the two sets of images that are compared, by its feature vectors.

    rows is None where only the statistics of the features are known, and count then too; fingerprint: changes whenever
    an image, or a file of statistics, does; labels: the classes that the images should be of, where that is known.
    """

    name: str
    count: int | None
    rows: Rows | None = None
    known: Statistics | None = None
    fingerprint: str | None = None
    labels: np.ndarray | None = None

    @property
    def vectors(self) -> Rows:
        """The rows where they are known to exist."""
        assert self.rows is not None
        return self.rows

    def statistics(self, output: str) -> Statistics:
        return self.known or self.vectors.statistics(output)


def score_fid(drawn: Side, real: Side) -> Values:
    return {"fid": {"value": frechet_distance(drawn.statistics("features"), real.statistics("features"))}}


def score_sfid(drawn: Side, real: Side) -> Values:
    """FID of seven feature maps of an inner layer, which keep the layout of an image: Nash et al. 2021, as in ADM."""
    return {"sfid": {"value": frechet_distance(drawn.statistics("spatial"), real.statistics("spatial"))}}


def score_kid(drawn: Side, real: Side) -> Values:
    mean, deviation, size = distances.kernel_distance(drawn.vectors["features"], real.vectors["features"])
    facts = {"standard_deviation": deviation, "subsets": distances.KID_SUBSETS, "subset_size": size}
    return {"kid": {"value": mean, **facts}}


def score_is(drawn: Side, _: Side) -> Values:
    mean, deviation = distances.inception_score(drawn.vectors["logits"])
    return {"is": {"value": mean, "standard_deviation": deviation, "splits": distances.IS_SPLITS}}


def score_precision_recall(drawn: Side, real: Side) -> Values:
    a, b, k = drawn.vectors, real.vectors, PRECISION_K
    precision, recall = distances.precision_recall(a["features"], b["features"], k, b.radii("features", k))
    return {"precision": {"value": precision, "k": k}, "recall": {"value": recall, "k": k}}


def score_density_coverage(drawn: Side, real: Side) -> Values:
    a, b, k = drawn.vectors, real.vectors, DENSITY_K
    density, coverage = distances.density_coverage(a["features"], b["features"], k, b.radii("features", k))
    return {"density": {"value": density, "k": k}, "coverage": {"value": coverage, "k": k}}


def score_agreement(drawn: Side, _: Side) -> Values:
    """The share of images that the classifier takes for the class they should be of, and its standard error."""
    assert drawn.labels is not None
    agrees = np.argmax(drawn.vectors["logits"][:], axis=1) == drawn.labels
    error = float(np.sqrt(agrees.mean() * (1 - agrees.mean()) / len(agrees)))
    return {"agreement": {"value": float(agrees.mean()), "standard_deviation": error}}


@dataclass(frozen=True)
class Score:
    """A score: its function of (drawn, real), the output of the feature network that it needs, and how much of it.

    real   what it needs of the real side: "rows", "statistics" or "nothing"
    least  the smallest number of images on either side
    """

    output: str
    function: Callable[[Side, Side], Values]
    real: str = "rows"
    least: int = 2


SCORES = {
    "fid": Score("features", score_fid, real="statistics"),
    "kid": Score("features", score_kid),
    "is": Score("logits", score_is, real="nothing", least=distances.IS_SPLITS),
    "precision_recall": Score("features", score_precision_recall, least=PRECISION_K + 1),
    "density_coverage": Score("features", score_density_coverage, least=DENSITY_K + 1),
    "sfid": Score("spatial", score_sfid),
    "agreement": Score("logits", score_agreement, real="nothing"),
}


def needed_outputs(names: Collection[str], features: Features, drawn: int, real: int | None) -> list[str]:
    """The outputs of the feature network that these scores need, for these numbers of drawn and real images.

    Raises UsageError where the network lacks an output, or a score needs more images.
    """
    for name in names:
        output, least = SCORES[name].output, SCORES[name].least
        if output not in features.outputs:
            raise UsageError(f"metrics=[{name}] does not work with features={features.name}: {MISSING_OUTPUT[output]}")
        if drawn < least or (real is not None and real < least and SCORES[name].real != "nothing"):
            against = "" if real is None else f" against {real}"
            raise UsageError(f"metrics=[{name}] needs at least {least} images on either side, and has {drawn}{against}")
    return sorted({SCORES[name].output for name in names})


def refuse_unlabelled(names: Collection[str], images: str, labels: np.ndarray | None, features: Features) -> None:
    """Raise UsageError where agreement is asked for with images without labels, or with other classes than theirs."""
    if "agreement" not in names:
        return
    if features.name != "classifier":
        raise UsageError(
            f"metrics=[agreement] compares labels with the classes of the data set: features=classifier knows them, "
            f"and features={features.name} has others"
        )
    if labels is None:
        raise UsageError(
            f"metrics=[agreement] needs images of known classes, and {images} has none: draw them from a run "
            "with class_conditional=true"
        )


def extract_features(images: ImageSet, features: Features, outputs: Collection[str], rows: Rows) -> Side:
    """The side of these images; their feature vectors are added to the rows that exist already."""

    def batches(first: int) -> Iterator[Vectors]:
        for some, found in features.of_all(regroup(images.batches(first))):
            yield {**found, "pixels": some.reshape(len(some), -1)}

    rows.extend(images.count, list(outputs), batches)
    return Side(images.name, images.count, rows, labels=images.labels)


def regroup(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same images in batches that fill a call of a feature network: files of large images come a few at a time."""
    waiting: list[np.ndarray] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= FEATURE_BATCH:
            yield np.concatenate(waiting)
            waiting.clear()
    if waiting:
        yield np.concatenate(waiting)


def cache_of(images: ImageSet, features: Features, data_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The folder in which the features of real images are kept, and what they are made from."""
    made_on = {"device": features.device.torch.type, "torch-fidelity": version("torch-fidelity")}
    made_from = {"images": images.fingerprint, **features.protocol, **made_on, "version": FEATURES_VERSION}
    key = key_of(*map(str, made_from.values()))
    return features_folder(data_dir) / f"{slug(images.name)}-{slug(features.name)}-{key}", made_from


def cost_of_real(images: ImageSet, features: Features, outputs: Collection[str], data_dir: Path) -> dict[str, float]:
    """About how many seconds the features of real images take that are not kept yet, for `log_cost`."""
    folder, _ = cache_of(images, features, data_dir)
    left = images.count - min((kept_rows(folder, output) for output in outputs), default=images.count)
    if left <= FEW_TO_COMPUTE:
        return {}
    what = f"features of {left:,} images of {images.name} (kept afterwards)"
    return {what: left / features.images_per_second(images.size)}


def cached_features(images: ImageSet, features: Features, outputs: Collection[str], data_dir: Path) -> Side:
    """The side of real images, whose features are kept under data_dir for the next evaluation.

    Where data_dir is another's, and may only be read, new ones are kept under one's own.
    """
    folder, made_from = cache_of(images, features, data_dir)
    if not may_write(folder):
        rows = Rows(folder, made_from)
        if all(rows.count(output) >= images.count for output in outputs):
            return Side(images.name, images.count, rows)
        folder = own_features_folder() / folder.name
        log.info(f"{data_dir} may only be read: the features of {images.name} are kept in {folder}")
    waiting = f"waiting for another process, which is computing the features of {images.name}"
    with hold_lock(folder.with_name(f".{folder.name}.lock"), waiting=waiting):
        return extract_features(images, features, outputs, Rows(folder, made_from))


def compute_score(name: str, features: Features, drawn: Side, real: Side) -> Values:
    """The values of a score by their names, each with its numbers of images and the warnings that follow from them."""
    counts = {"n": drawn.count} if SCORES[name].real == "nothing" else {"n": drawn.count, "n_real": real.count}
    found = {}
    for value_name, facts in SCORES[name].function(drawn, real).items():
        warnings = size_warnings(value_name, drawn, real)
        found[features.score_name(value_name)] = {**facts, **counts, **({"warnings": warnings} if warnings else {})}
    return found


def size_warnings(name: str, drawn: Side, real: Side) -> list[str]:
    """What a reader must know about a value that was computed from few images."""
    sides = [drawn] if name == "is" else [drawn, real]
    least = min(side.count for side in sides if side.count is not None)
    usual = distances.KID_SUBSET_SIZE
    bias = {"fid": "upwards", "sfid": "upwards", "is": "downwards"}
    found = []
    if name in ("fid", "sfid") and least <= (width := drawn.vectors[SCORES[name].output].shape[1]):
        found.append(f"{least} images do not determine a covariance of {width} features")
    if name in bias and least < FEW:
        found.append(f"biased {bias[name]}, since there are few images: compare it only at the same n")
    if name == "kid" and least <= usual and drawn.count == real.count:
        found.append(f"every subset is the whole of both sets, {least} images: the deviation means nothing")
    elif name == "kid" and least < usual:
        found.append(f"subsets of {least} where {usual} are usual: the deviation is not comparable")
    if name in ("precision", "recall", "density", "coverage") and (drawn.count != real.count or least < FEW):
        found.append(f"depends on both numbers of images: compare it only at {drawn.count} and {real.count}")
    return found
