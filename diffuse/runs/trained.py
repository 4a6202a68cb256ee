"""A trained network from a checkpoint, ready to be called: what sampling, scoring and a failed step begin with."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from diffuse.data.conditions import Condition
from diffuse.data.images import Dataset, ImageKind
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.schedules import Schedule
from diffuse.options.build import build, checked_options
from diffuse.options.dataset import build_dataset
from diffuse.options.formulas import Formulas
from diffuse.options.network import build_network, condition_of
from diffuse.options.schema import NetworkConfig, TrainConfig, plain, stored_config
from diffuse.runs.checkpoint import FOLDER, Stored, find, fitting
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import data_folder
from diffuse.system.progress import log


class TrainedNetwork:
    """A network rebuilt from the config in its checkpoint, on a device, with the formulas that it was trained with.

    weights     which of the checkpoint's: "ema" or "model"
    rows        the number of images of one network call
    batch_size  the images in flight, rounded up to a multiple of rows
    data_dir, place  where the data are now, if not where they were in training
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
    ):
        self.path, self.sha256, self.device, self.trust = stored.path, stored.sha256, device, trust
        self._data_dir, self._place = data_dir, place or {}
        content = stored.content
        if "config" not in content:
            raise UserError(
                f"{stored.path} was saved by a Trainer without a config: it restores that Trainer only. "
                "`diffuse train` saves checkpoints that can be sampled from"
            )
        with fitting(stored.path):
            self.config: TrainConfig = stored_config(content["config"])
            self.step = int(content["step"])
            self.kind = ImageKind(**checked_options(ImageKind, content["kind"], "kind"))
            self.formulas = Formulas.of(self.config, self.kind, trust)
            self.condition: Condition = condition_of(self.config, self.kind)
            net = build_network(self.config, self.kind, trust)
            net.load_state_dict(content[weights])
            self.data_sha256 = dict(content["data_sha256"])
        self.net: nn.Module = device.place(net.eval().requires_grad_(False))
        self.rows = device.rows(self.kind.side, batch_size)
        self.batch_size = -(-batch_size // self.rows) * self.rows

    @property
    def schedule(self) -> Schedule:
        return self.formulas.schedule

    @cached_property
    def data(self) -> Dataset:
        """The data set of the training, where it is said to be now."""
        for key in self._place.keys() - self.config.dataset.keys():
            raise UsageError(f"dataset.{key} is for runs on your own images, and this run has other data")
        data_dir = data_folder(self._data_dir or self.config.data_dir)
        data = build_dataset({**self.config.dataset, **self._place}, data_dir, self.trust)
        refuse_other_kind(data.kind, self.kind)
        if data.sha256 != self.data_sha256:
            log.warning(
                f"the images of {data.kind.name} are not the ones of the training (their hash differs): "
                "what is a test image now may have been trained on"
            )
        return data

    @property
    def where(self) -> str:
        """The device, and the precision that the network has there."""
        return self.formulas.where(self.device)

    @property
    def home(self) -> Path:
        """The run folder that the checkpoint is in, or the folder of a checkpoint that is in none."""
        folder = self.path.parent
        return folder.parent if folder.name == FOLDER else folder

    @property
    def provenance(self) -> dict[str, Any]:
        """Which checkpoint this is, for the records of everything that is made with it."""
        return {
            "checkpoint": str(self.path),
            "checkpoint_sha256": self.sha256,
            "step": self.step,
            "weights": "ema",
        }

    def denoiser(self, clip: bool, float32: bool = False) -> Denoiser:
        """The trained denoiser, its predicted x0 clipped or not, in the device's precision or in float32."""
        return self.formulas.denoiser(self.net, self.device, self.rows, clip, float32)


def load(ckpt: str, device: Device | None = None, trust: Sequence[str] = (), **options: Any) -> TrainedNetwork:
    """The network of a run folder, which means its newest checkpoint, or of a checkpoint file, with its EMA weights."""
    found = find(ckpt)
    if "failure" in found.content:
        raise UserError(f"{found.path} is a step that failed; scripts/replay_failure.py does it again")
    return TrainedNetwork(found, device or Device(), trust=trust, **options)


def load_for(config: NetworkConfig) -> TrainedNetwork:
    """The network that a command asks for; from here on the command's own thread computes alone.

    Its workers do the same: samples and scores do not depend on the number of threads.
    """
    if config.ckpt is None:
        raise UsageError("ckpt is required: a run folder or a checkpoint file")
    device: Device = build(config.device, "device", config.trust)
    device.compute_with(1)
    place = {key: value for key, value in plain(config.dataset).items() if value is not None}
    options = {"batch_size": config.batch_size, "data_dir": config.data_dir, "place": place}
    return load(config.ckpt, device, config.trust, **options)


def refuse_other_kind(now: ImageKind, then: ImageKind) -> None:
    """Raise UserError where a data set is not what the network was trained on, whatever it is called now."""
    for field in ("channels", "size", "pad", "classes"):
        found, expected = getattr(now, field), getattr(then, field)
        if found != expected:
            found, expected = (str(value)[:60] for value in (found, expected))
            raise UserError(
                f"the images of {now.name} are not of the kind that the network was trained on: "
                f"{field} is {found}, and was {expected}; see dataset.path and data_dir"
            )
