"""A trained network, rebuilt from its checkpoint: where sampling, scoring and repeating a failed step begin."""

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from diffuse.data.conditions import Condition
from diffuse.data.images import Dataset, ImageKind
from diffuse.foreign.weights import UNKNOWN_DATA, typed_in
from diffuse.mathematics.classifier import NoisyClassifier
from diffuse.mathematics.denoiser import AnyDenoiser
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.wrappers import Clipped
from diffuse.options.build import build
from diffuse.options.dataset import build_dataset, stored_kind
from diffuse.options.formulas import Formulas
from diffuse.options.nested import Foreign
from diffuse.options.network import build_network, condition_of
from diffuse.options.schema import NetworkConfig, TrainConfig, plain, stored_config
from diffuse.options.targets import own_name
from diffuse.runs.averages import of_length
from diffuse.runs.checkpoint import Stored, refuse_mismatch
from diffuse.runs.checkpoint_files import CHECKPOINTS
from diffuse.runs.foreign import ONE_SET, ORIGIN, find_any
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import OUTPUTS, RECORD, data_folder, may_write, slug
from diffuse.system.progress import log

POWER = "ema-"  # the name of the weights that are a power average, before its length


class TrainedNetwork:
    """A network rebuilt from the config in its checkpoint, on a device, with the formulas that it was trained with.

    weights     "ema" for the averaged weights of the checkpoint, "model" for the trained ones, "ema-0.1" for a power
                average of that length
    rows        the number of images in one network call
    batch_size  the number of images drawn or scored at a time, rounded up to a multiple of rows
    data_dir, place  where the data are now, if not where they were in training
    asked       what the user says of other programs' weights, this network's or that of one which guides it
    sources     every file that something drawn or scored with it comes from, with its SHA-256
    """

    def __init__(
        self,
        stored: Stored,
        device: Device,
        batch_size: int = 64,
        trust: Sequence[str] = (),
        weights: str = "ema",
        data_dir: str | None = None,
        place: Mapping[str, Any] | None = None,
        asked: Foreign | None = None,
    ):
        self.path, self.sha256, self.device, self.trust = stored.path, stored.sha256, device, trust
        self._data_dir, self._place, self.weights, self.asked = data_dir, place or {}, weights, asked
        content = stored.content
        if "config" not in content:
            raise UserError(
                f"{stored.path} was saved by a Trainer without a config: it restores that Trainer only. "
                "`diffuse train` saves checkpoints that can be sampled from"
            )
        with refuse_mismatch(stored.path):
            self.config: TrainConfig = stored_config(content["config"])
            self.step = int(content["step"])
            self.kind = stored_kind(content["kind"])
            self.formulas = Formulas.of(self.config, self.kind, trust)
            self.condition: Condition = condition_of(self.config, self.kind)
            state = weights_in(content, weights, stored.path)
            refuse_other_shapes(self.config, self.kind, state)
            net = build_network(self.config, self.kind, trust)
            net.load_state_dict(state)
            self.data_sha256 = dict(content["data_sha256"])
        self.foreign: dict[str, Any] = content.get("foreign", {})
        self.origin: str = content.get(ORIGIN, "") or origin_of(self.foreign)
        self.known_as: str = content.get(ONE_SET, weights)
        self.sources = {str(stored.path): stored.sha256, **self.foreign.get("files", {})}
        refuse_not_finite(net, stored.path)
        self.net: nn.Module = device.place(net.eval().requires_grad_(False))
        self.rows = device.rows(self.kind.padded_size, batch_size)
        self.batch_size = device.whole_calls(batch_size, self.rows)

    @property
    def schedule(self) -> Schedule:
        return self.formulas.schedule

    @property
    def knows_data(self) -> bool:
        """Whether it is known which images the network was trained on."""
        return bool(self.config.dataset["_target_"] != UNKNOWN_DATA)

    @cached_property
    def data(self) -> Dataset:
        """The data set of the training, from the place where it is now."""
        if not self.knows_data:
            raise UsageError(
                "other programs' weights do not say which images they were trained on: set foreign.dataset=cifar10, "
                "mnist, ..., or reference=DATASET:SPLIT, a folder or a file"
            )
        for key in self._place.keys() - self.config.dataset.keys():
            raise UsageError(f"dataset.{key} is for runs on your own images, and this run has other data")
        data_dir = data_folder(self._data_dir or self.config.data_dir)
        data = build_dataset({**self.config.dataset, **self._place}, data_dir, self.trust)
        refuse_other_kind(data.kind, self.kind)
        if self.data_sha256 and data.sha256 != self.data_sha256:
            log.warning(
                f"the images of {data.kind.name} have changed since the training (their hash differs): "
                "the network may have been trained on images that are in the test split now"
            )
        return data

    @property
    def in_words(self) -> str:
        """The step and which weights they are, as far as that is known."""
        found = [f"step {self.step:,}"] if self.step else []
        return ", ".join([*found, f"{self.known_as} weights" if self.known_as else "weights as the file has them"])

    @property
    def where(self) -> str:
        """The device, and the network's precision on it."""
        return self.formulas.where(self.device)

    @cached_property
    def home(self) -> Path:
        """The run folder of the checkpoint, or the folder that it is in where that is not part of a run.

        Where that may only be read, a folder of its name in outputs/. So it is for other programs' weights, whose
        folder stays as it is.
        """
        if self.foreign:
            home = OUTPUTS / (slug(str(self.config.name)) or "weights")
            return home.with_name(f"{home.name}-weights") if (home / RECORD).exists() else home  # a run of that name
        home = self.path.parent.parent if self.path.parent.name == CHECKPOINTS else self.path.parent
        if may_write(home):
            return home
        log.info(f"{home} may only be read: what is made goes into {OUTPUTS / home.name}")
        return OUTPUTS / home.name

    @property
    def provenance(self) -> dict[str, Any]:
        """Which checkpoint this is, for the records of everything that is made with it."""
        file = {"checkpoint": str(self.path), "checkpoint_sha256": self.sha256}
        made_by = {"foreign": {**self.foreign["options"], "format": self.foreign["format"]}} if self.foreign else {}
        return {**file, "step": self.step, "weights": self.weights, **made_by}

    def images_per_second(self) -> float:
        """The speed of network calls, measured."""
        return self.speed_of(self.denoiser(), self.condition)

    def speed_of(self, denoiser: AnyDenoiser, condition: Condition, t: float = 1.0) -> float:
        """Images a second of a denoiser at a time, on the second of two full batches: the first one warms up."""
        x = torch.zeros(self.batch_size, *self.kind.shape, device=self.device.torch)
        y = condition.of_samples(range(len(x)), self.device.torch)
        for _ in range(2):
            self.device.synchronize()
            started = time.monotonic()
            with torch.no_grad():
                denoiser(x, torch.tensor(t, dtype=torch.float64), y)
            self.device.synchronize()
        return len(x) / (time.monotonic() - started)

    def denoiser(self, clip: bool = False, float32: bool = False) -> AnyDenoiser:
        """The trained denoiser, its predicted x0 clipped or not, in the device's precision or in float32.

        Raises UsageError where the network is a classifier.
        """
        self.refuse_classifier("ckpt", str(self.path))
        denoiser = self.formulas.denoiser(self.net, self.device, self.rows, float32)
        return Clipped(denoiser) if clip else denoiser

    def classifier(self) -> NoisyClassifier:
        """The trained classifier of noisy images, of a run of method=classifier."""
        return self.formulas.classifier(self.net, self.device, self.rows)

    def refuse_unused(self, asked: Foreign, key: str, ckpt: str) -> None:
        """Raise UsageError where something is said of other programs' weights, and these are ours."""
        if (typed := typed_in(asked)) and not self.foreign:
            raise UsageError(f"foreign.{next(iter(typed))} is about other programs' weights, and {key}={ckpt} is ours")

    def refuse_classifier(self, key: str, ckpt: str) -> None:
        """Raise UsageError, with the key and value that named it, where the network is not a denoiser's."""
        if self.config.classifies:
            raise UsageError(
                f"{key}={ckpt} is a classifier of noisy images, which draws no images and has no likelihood: it guides "
                f"another run, as in diffuse sample ckpt=RUN guidance=classifier guidance.ckpt={ckpt}"
            )


def refuse_other_shapes(config: TrainConfig, kind: ImageKind, state: Mapping[str, Any]) -> None:
    """Raise ValueError where weights are not those of the network that a config describes, before it takes memory.

    A config may come from a stranger, and describe a network of any size.
    """
    if own_name("unet", str(config.unet.get("_target_"))) is None:
        return  # a network of the user's own, which may not be buildable without memory
    with torch.device("meta"):
        expected = build_network(config, kind).state_dict()
    for name in sorted({*expected, *state}):
        shapes = [list(each[name].shape) if name in each else "absent" for each in (state, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name[:80]} is {shapes[0]}, and {shapes[1]} in the network of the config")


def origin_of(foreign: Mapping[str, Any]) -> str:
    """Where other programs' weights come from, in words; "" of ours."""
    files = (f"{Path(name).name} (SHA-256 {sha256})" for name, sha256 in foreign.get("files", {}).items())
    return f"{foreign['format']} weights: {', '.join(files)}" if foreign else ""


def refuse_not_finite(net: nn.Module, path: Path) -> None:
    """Raise UserError where a weight is NaN or infinite: whatever is drawn with it or scored would be wrong."""
    for name, weight in net.state_dict().items():
        if not torch.isfinite(weight).all():
            raise UserError(f"{path} holds weights that are NaN or infinite ({name}): use another checkpoint")


def load(
    ckpt: str,
    device: Device | None = None,
    trust: Sequence[str] = (),
    key: str = "ckpt",
    foreign: Foreign | None = None,
    **options: Any,
) -> TrainedNetwork:
    """The network of a checkpoint file, or of the newest checkpoint of a run folder, with its EMA weights.

    Or that of other programs' weights, about which `foreign` says what they do not say themselves.

    key: what messages call it.
    """
    found = find_any(ckpt, key, foreign)
    if "failure" in found.content:
        raise UserError(f"{found.path} is a step that failed; scripts/replay_failure.py computes it again")
    return TrainedNetwork(found, device or Device(), trust=trust, asked=foreign, **options)


def load_for(config: NetworkConfig) -> TrainedNetwork:
    """The network of a command. From here on the main thread computes by itself, as each worker thread does.

    So samples and scores do not depend on the number of threads.
    """
    if config.ckpt is None:
        raise UsageError("ckpt is required: a run folder or a checkpoint file")
    device: Device = build(config.device, "device", config.trust)
    device.compute_with(1)
    place = {key: value for key, value in plain(config.dataset).items() if value is not None}
    options: dict[str, Any] = {
        "weights": weights_of(config.ema.length),
        "foreign": config.foreign,
        "batch_size": config.batch_size,
        "data_dir": config.data_dir,
        "place": place,
    }
    network = load(config.ckpt, device, config.trust, **options)
    if config.guidance.get("ckpt") is None:
        network.refuse_unused(config.foreign, "ckpt", config.ckpt)
    network.refuse_classifier("ckpt", config.ckpt)
    return network


def weights_of(length: float | None) -> str:
    """Which weights of a checkpoint ema.length means."""
    if length is None:
        return "ema"
    return f"{POWER}{length}" if length else "model"


def weights_in(content: Mapping[str, Any], weights: str, path: Path) -> Mapping[str, Any]:
    """The weights of that name in the content of a checkpoint, or put together of the averages beside it."""
    if ONE_SET in content and weights != "ema":
        raise UsageError(f"{path} has one set of weights: leave out ema.length (init.weights in `train`)")
    if weights.startswith(POWER):
        return of_length(float(weights.removeprefix(POWER)), path, content)
    return cast("Mapping[str, Any]", content[weights])


def refuse_other_kind(now: ImageKind, then: ImageKind) -> None:
    """Raise UserError where the images of a data set have another form than those the network was trained on."""
    for field in ("channels", "size", "values", "pad", "classes"):
        found, expected = getattr(now, field), getattr(then, field)
        if found != expected:
            raise UserError(
                f"the network was not trained on images like those of {now.name}: "
                f"{field} is {str(found)[:60]}, and was {str(expected)[:60]}; see dataset.path and data_dir"
            )
