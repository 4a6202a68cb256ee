"""A trained network made ready to be called, and the data it was trained on: what sampling and scoring begin with."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.data.arrays import Split
from diffuse.data.images import Dataset, ImageKind
from diffuse.mathematics.denoiser import Denoiser
from diffuse.options.build import build, build_dataset
from diffuse.runs.checkpoint import Trained, load_trained
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError
from diffuse.system.progress import log


class Prepared:
    """A trained network on its device.

    chunk is the number of images of one network call; batch_size, the images in flight, is a multiple of it.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.device: Device = build(config["device"], "device", config["trust"])
        self.trained: Trained = load_trained(config["ckpt"], config["trust"])
        self.kind = self.trained.kind
        self.conditional = bool(self.trained.config["class_conditional"])
        self.chunk = self.device.rows(self.kind.side, config["batch_size"])
        self.batch_size = -(-config["batch_size"] // self.chunk) * self.chunk

    @cached_property
    def data(self) -> Dataset:
        """The data set of the training, where this config says that it is now."""
        data = build_dataset(moved(self.trained.config, self.config), self.config["trust"])
        refuse_other_kind(data.kind, self.kind)
        if data.sha256 != self.trained.data_sha256:
            log.warning(
                f"the images of {data.kind.name} are not the ones of the training (their hash differs): "
                "what is a test image now may have been trained on"
            )
        return data

    @property
    def where(self) -> str:
        """The device, and the precision that the network has there."""
        return self.trained.formulas.where(self.device)

    def denoiser(self, clip: bool, float32: bool = False) -> Denoiser:
        """The trained denoiser, its guesses of x0 clipped or not, in the device's precision or in float32."""
        net = self.device.place(self.trained.net)
        return self.trained.formulas.denoiser(net, self.device, self.chunk, clip, float32)

    def labels(self, split: Split, rows: np.ndarray) -> Tensor | None:
        """The classes of these rows of a split, for a class-conditional network."""
        if not self.conditional or split.labels is None:
            return None
        return torch.from_numpy(split.labels[rows]).to(self.device.torch)


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


def moved(trained: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The training config, with its data where this config says that they are now."""
    places = {key: place for key, place in config["dataset"].items() if place is not None}
    for key in places.keys() - trained["dataset"].keys():
        raise UsageError(f"dataset.{key} is for runs on images of one's own, and this one was trained on other data")
    data_dir = trained["data_dir"] if config["data_dir"] is None else config["data_dir"]
    return {**trained, "data_dir": data_dir, "dataset": {**trained["dataset"], **places}}
