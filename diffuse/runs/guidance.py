"""The options of the group `guidance`: each makes a guide, which puts guidance around the denoiser of a run.

Whether the run has what a guidance needs is checked here, with the keys to change; the formulas are in
`mathematics.guidance`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from diffuse.data.conditions import Condition, in_short
from diffuse.mathematics.denoiser import AnyDenoiser, Prediction
from diffuse.mathematics.guidance import EVERYWHERE, Autoguided, ClassifierFree, ClassifierGuided, Guided
from diffuse.options.build import about, build_with
from diffuse.options.keys import Node
from diffuse.runs.trained import TrainedNetwork, load
from diffuse.system.errors import Refused, UsageError, check
from diffuse.system.progress import log

Around = Callable[[AnyDenoiser], AnyDenoiser]  # puts guidance around a denoiser
Interval = tuple[float, float]
LISTED = 12  # classes in a message
FILES = ("ckpt", "target", "mask", "features")  # keys that name files, which records have by their hash


def one_call(guess: Prediction) -> int:
    """The network calls of a prediction without guidance."""
    return 1


@dataclass(frozen=True)
class Guide:
    """What puts guidance around a denoiser, and the condition that samples may have with it.

    condition  the run's own, whatever it is; of a run without labels, that of the classifier which guides it
    files      the SHA-256 of each file that it was made of, by the key that names it
    """

    around: Around
    condition: Condition
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Guidance:
    """The guidance of a command.

    around     puts it around a denoiser, which then takes the y of `condition`
    condition  of the samples
    calls      how many calls of the denoiser's network a prediction takes
    record     its options, for the files beside the samples; empty without guidance
    """

    around: Around
    condition: Condition
    calls: Callable[[Prediction], int] = one_call
    record: dict[str, Any] = field(default_factory=dict)


def none(condition: Condition) -> Guide:
    """No guidance: the prediction as it is."""
    return Guide(lambda denoiser: denoiser, condition)


def classifier_free(
    network: TrainedNetwork,
    condition: Condition,
    scale: float = 2.0,
    interval: list[float] | None = None,
    rescale: float = 0.0,
    parallel: float = 1.0,
    norm_limit: float | None = None,
) -> Guide:
    """Classifier-free guidance: further away from what the network predicts without a label. Ho and Salimans 2022.

    scale       1 is the label alone, 0 no label, above 1 more typical of the class; others write w = scale - 1
    interval    [low, high], the noise levels sigma / alpha with guidance (null: all)
    rescale     share in which the output's deviation is set back to that without guidance
    parallel    share that is kept of what points along the prediction: 0 saturates less at large scales
    norm_limit  largest norm of the difference of the two predictions over an image (null: none)
    """
    if not condition.classes:
        raise UsageError(
            "guidance=classifier_free needs a run that was trained on labels, and this one was not: train one with "
            "class_conditional=true, or choose guidance=classifier (for a class) or autoguidance"
        )
    if not condition.dropout:
        raise UsageError(
            "guidance=classifier_free needs a run that was also trained without labels, and this one always had them: "
            "train one with class_conditional=true label_dropout=0.1, or choose guidance=autoguidance"
        )
    around = contrast(ClassifierFree, scale, interval, rescale, parallel, norm_limit, null=condition.null)
    return Guide(around, condition)


def autoguidance(
    network: TrainedNetwork,
    condition: Condition,
    ckpt: str | None = None,
    weights: str = "ema",
    scale: float = 1.5,
    interval: list[float] | None = None,
    rescale: float = 0.0,
    parallel: float = 1.0,
    norm_limit: float | None = None,
) -> Guide:
    """Autoguidance: further away from what a worse network predicts, with labels or without. Karras et al. 2024.

    ckpt        the worse network: an earlier checkpoint of the run, or a run with a smaller network or fewer steps
    weights     ema or model: its averaged weights or the trained ones
    scale       1 is the run's own network, above 1 away from the worse one
    interval    [low, high], the noise levels sigma / alpha with guidance (null: all)
    rescale     share in which the output's deviation is set back to that without guidance
    parallel    share that is kept of what points along the prediction: 0 saturates less at large scales
    norm_limit  largest norm of the difference of the two predictions over an image (null: none)
    """
    other = other_network(network, ckpt, weights)
    other.refuse_classifier("guidance.ckpt", str(ckpt))
    if other.condition.classes and list(other.condition.classes) != list(condition.classes):
        raise UsageError(
            f"guidance.ckpt={ckpt} was trained on labels that this run does not have: use one with the same classes, "
            "or without any"
        )
    if other.kind.name != network.kind.name:
        log.warning(
            f"guidance.ckpt={ckpt} was trained on {other.kind.name}, and the run on {network.kind.name}: autoguidance "
            "is meant for a worse network of the same images"
        )
    labels = bool(other.condition.classes)
    worse = other.denoiser()
    around = contrast(Autoguided, scale, interval, rescale, parallel, norm_limit, worse=worse, labels=labels)
    return Guide(around, condition, {"ckpt": other.sha256})


def classifier(
    network: TrainedNetwork,
    condition: Condition,
    ckpt: str | None = None,
    weights: str = "ema",
    scale: float = 1.0,
    interval: list[float] | None = None,
) -> Guide:
    """Classifier guidance: towards what a classifier takes for the class. Dhariwal and Nichol 2021.

    ckpt      the classifier: a run of method=classifier on the same images and schedule
    weights   ema or model: its averaged weights or the trained ones
    scale     0 is no guidance; 1 adds the class to a run without labels; above 1 more typical of the class
    interval  [low, high], the noise levels sigma / alpha with guidance (null: all)
    """
    if ckpt is None:
        raise UsageError(
            "guidance.ckpt is required: a classifier, which diffuse train method=classifier makes of the same images, "
            f"with {in_words(network.config.schedule)}"
        )
    guiding = other_network(network, ckpt, weights)
    if not guiding.config.classifies:
        raise UsageError(
            f"guidance.ckpt={ckpt} is no classifier: train one on the same images and schedule with method=classifier"
        )
    refuse_other_classes(str(ckpt), guiding, network)
    around = partial(
        ClassifierGuided,
        scale=scale,
        interval=pair(interval),
        gradient=guiding.classifier().gradient,
        labels=bool(condition.classes),
    )
    return Guide(around, condition if condition.classes else guiding.condition, {"ckpt": guiding.sha256})


def refuse_other_classes(ckpt: str, other: TrainedNetwork, network: TrainedNetwork) -> None:
    """Raise UsageError where a classifier tells apart other classes than those of the images that a run draws.

    Images without classes may be guided by any classifier of such images. Other programs' weights may not say what they
    were trained on: then the number of classes has to do.
    """
    guiding, drawn = other.kind, network.kind
    if drawn.classes and guiding.classes != drawn.classes:
        raise UsageError(
            f"guidance.ckpt={ckpt} tells apart the classes {in_short(guiding.classes, LISTED)}, and the run has "
            f"{in_short(drawn.classes, LISTED)}: train a classifier on the run's own classes"
        )
    if drawn.classes and guiding.name != drawn.name and other.knows_data and network.knows_data:
        raise UsageError(
            f"guidance.ckpt={ckpt} is a classifier of {guiding.name}, and the run has {drawn.name}: train one on the "
            "same images"
        )


def contrast(
    kind: Callable[..., AnyDenoiser],
    scale: float,
    interval: list[float] | None,
    rescale: float,
    parallel: float,
    norm_limit: float | None,
    **given: object,
) -> Around:
    """Guidance by the contrast of two predictions."""
    limit = math.inf if norm_limit is None else norm_limit
    options = {"scale": scale, "interval": pair(interval), "rescale": rescale, "parallel": parallel}
    return partial(kind, **options, norm_limit=limit, **given)


def pair(interval: list[float] | None) -> Interval:
    """The interval of noise levels. Raises Refused for anything but two numbers."""
    if interval is None:
        return EVERYWHERE
    check(len(interval) == 2, "interval", "[low, high], two noise levels sigma / alpha", interval)
    return interval[0], interval[1]


def other_network(network: TrainedNetwork, ckpt: str | None, weights: str = "ema") -> TrainedNetwork:
    """The network that guides another one, on its device. Raises UsageError where it is of other images or noise."""
    if ckpt is None:
        raise UsageError("guidance.ckpt is required: an earlier checkpoint of the run, or a smaller run that guides it")
    check(weights in ("ema", "model"), "weights", "ema or model", weights)
    options: dict[str, Any] = {"batch_size": network.batch_size, "weights": weights}
    other = load(ckpt, network.device, network.trust, "guidance.ckpt", network.asked, **options)
    if other.kind.shape != network.kind.shape:
        raise UsageError(f"guidance.ckpt={ckpt} is for images {other.kind.shape}, and the run has {network.kind.shape}")
    if other.config.schedule != network.config.schedule:
        raise UsageError(
            f"guidance.ckpt={ckpt} was trained with {in_words(other.config.schedule)}, and the run with "
            f"{in_words(network.config.schedule)}: train the one that guides with the schedule of the run"
        )
    network.sources |= other.sources
    return other


def in_words(schedule: Node) -> str:
    """A schedule, with its options."""
    options = ", ".join(f"{key}={value}" for key, value in schedule.items() if key != "_target_")
    return f"schedule={schedule['_target_']}" + (f" ({options})" if options else "")


def guidance_of(node: Node, network: TrainedNetwork, label: Any = None) -> Guidance:
    """The guidance of a command's config for a network, and the condition of samples of a label; both are checked."""
    guide: Guide = build_with(node, "guidance", network.trust, network=network, condition=network.condition)
    with about("guidance"):
        wrapped = guide.around(network.denoiser())
    try:
        condition = guide.condition.of(label)
    except Refused as error:
        raise UsageError(str(error)) from error
    if not isinstance(wrapped, Guided):
        return Guidance(guide.around, condition)
    record = {key: in_json(value) for key, value in node.items() if value is not None and key not in FILES}
    files = {f"{key}_sha256": digest for key, digest in guide.files.items()}
    return Guidance(guide.around, condition, wrapped.calls, {**record, **files})


def in_json(value: Any) -> Any:
    """The value, with null for an interval that has no upper end."""
    return [None if each == math.inf else each for each in value] if isinstance(value, list) else value
