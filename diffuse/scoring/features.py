"""What turns 8-bit images into vectors that distances are taken between: the config group `features`.

A score means nothing without the network that its features came from: its name, the hash of its weights and how images
were resized for it go wherever the score goes.
"""

import hashlib
import sys
import urllib.error
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.system.device import Device
from diffuse.system.errors import UserError, check
from diffuse.system.files import sha256, slug

ROWS, ROWS_ON_CPU = 64, 16  # images that go through a feature network at once
SPATIAL_CHANNELS = 7  # of 192: what ADM's evaluator takes for sFID
Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Features:
    """A network that describes images by vectors.

    name (`inception` and `classifier` are those networks and no others); sha256 of its weights; resize: what is done to
    images of another size or with one channel, in words; outputs: which of `features` [n, D], `logits` [n, classes] and
    `spatial` [n, S] it gives; net: uint8 images [n, C, H, W] on the device -> those, float32; facts: what else is worth
    knowing.
    """

    name: str
    sha256: str
    resize: str
    outputs: tuple[str, ...]
    device: Device
    net: Callable[[Tensor], Outputs]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for uint8 images [n, C, H, W] with 1 or 3 channels, in float32.

        On a CPU the network is called with a fixed number of images, the last of them black, since results differ in
        the last bits between batch sizes: an image's vectors depend on the image alone.
        """
        on_cpu = self.device.torch.type == "cpu"
        rows = ROWS_ON_CPU if on_cpu else ROWS

        def call(start: int) -> dict[str, Tensor]:
            here = torch.from_numpy(np.ascontiguousarray(images[start : start + rows]))
            missing = rows - len(here) if on_cpu else 0
            found = self.net(F.pad(here, (0, 0, 0, 0, 0, 0, 0, missing)).to(self.device.torch))
            return {name: found[name][: len(here)] for name in self.outputs}

        parts = self.device.spread(call, range(0, len(images), rows))
        return {name: torch.cat([part[name] for part in parts]).float().cpu().numpy() for name in self.outputs}

    def width(self, size: int) -> int:
        """How many features an image of this size has. Raises UserError where the network cannot be called with it."""
        try:
            return int(self(np.zeros((1, 1, size, size), np.uint8))["features"].shape[1])
        except (RuntimeError, LookupError, AttributeError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
            raise UserError(
                f"features={self.name} cannot be called with images of {size} x {size}, or gives no vectors: {reason}\n"
                "It is given float32 images [n, 3, H, W] and must give a tensor [n, ...]; features.size=N resizes them"
            ) from error

    @property
    def protocol(self) -> dict[str, Any]:
        """What a score must be told with."""
        return {"name": self.name, "sha256": self.sha256, "resize": self.resize, "dtype": "float32", **self.facts}

    def score_name(self, score: str) -> str:
        """The name of a score by these features: those of Inception are the standard, and others say so."""
        return score if self.name == "inception" else f"{score}_{self.name}"


def as_rgb(images: Tensor) -> Tensor:
    """Grey images [n, 1, H, W] with their channel three times; colour images as they are."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def inception(device: Device, weights: str | None = None) -> Features:
    """The Inception network of FID, KID and the Inception Score: TensorFlow's of 2015-12-05, in torch-fidelity's form.

    weights   a file with its weights; null takes, or downloads, the one that torch-fidelity keeps in torch's cache
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = downloaded_inception() if weights is None else existing(weights, "features.weights")
    try:
        load_safely(path)  # torch-fidelity unpickles whatever it is given
    except UserError as error:
        if weights is None:
            raise UserError(f"{path} is damaged: remove it, and it is downloaded again") from error
        raise
    try:
        extractor = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        ).to(device.torch)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"features.weights={path} are not the weights of FID's Inception network") from error
    seen: dict[int, Tensor] = {}  # by the thread that calls the network

    def keep(_: Any, __: Any, output: Tensor) -> None:
        seen[get_ident()] = output[:, :SPATIAL_CHANNELS].flatten(1)

    extractor.Mixed_6d.branch1x1.register_forward_hook(keep)  # what TensorFlow calls mixed_6/conv

    def net(images: Tensor) -> Outputs:
        features, logits = extractor(as_rgb(images))
        return {"features": features, "logits": logits, "spatial": seen.pop(get_ident())}

    # Published copies of the weights come without their last layer, which only the Inception Score needs.
    outputs = ("features", "logits", "spatial") if extractor.fc.weight.any() else ("features", "spatial")
    resize = "bilinear to 299 x 299 as TensorFlow 1 did, grey as three equal channels (torch-fidelity)"
    return Features("inception", sha256(path), resize, outputs, device, net)


def downloaded_inception() -> Path:
    """The file that torch-fidelity downloads, in torch's cache; downloaded now if it is not there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beginning_of_hash = path.stem.rpartition("-")[2]
            progress = sys.stderr.isatty()
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), beginning_of_hash, progress=progress)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"features=inception needs its weights (96 MB), and they could not be downloaded: {error}\n"
                f"Download {URL_INCEPTION_V3}\n"
                f"to {path}, or say where they are: features.weights=FILE\n"
                "Without them, features=classifier scores by a small network of a data set with labels"
            ) from error
    return path


def torchscript(device: Device, path: str, size: int | None = None, low: float = 0.0, high: float = 255.0) -> Features:
    """Any network saved by torch.jit.save: called with float32 images [n, 3, H, W], it gives [n, ...], flattened.

    One whose `forward` has an argument return_features, as StyleGAN's copy of Inception has, is called with it: else it
    would give probabilities of classes.

    path   the file
    size   images are resized to size x size, bilinear with antialiasing; null leaves them as they are
    low    what black is for the network
    high   what white is
    """
    check(size is None or size >= 1, "size", "a number of pixels or null", size)
    check(low != high, "low", "another number than high", f"{low:g}")
    file = existing(path, "features.path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch would rather have networks exported in another form
            script = torch.jit.load(str(file), map_location=device.torch).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"features.path={path} is no network saved by torch.jit.save") from error

    named = {argument.name for argument in script.forward.schema.arguments}
    extra = {"return_features": True} if "return_features" in named else {}

    def net(images: Tensor) -> Outputs:
        x = as_rgb(images).float()
        if size is not None:
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        return {"features": script(low + (high - low) * x / 255, **extra).flatten(1)}

    how = "none" if size is None else f"bilinear with antialiasing to {size} x {size}"
    resize = f"{how}, grey as three equal channels, pixels from {low:g} to {high:g}"
    name = slug(file.stem)
    if name in ("", "inception", "classifier"):  # names that mean something else
        name = f"torchscript-{name}"
    return Features(name, sha256(file), resize, ("features",), device, net)


def existing(path: str, key: str) -> Path:
    """The file at this path, or a UserError about the key."""
    found = Path(path).expanduser().absolute()
    if not found.is_file():
        raise UserError(f"{key}={path} must be a file, and there is none")
    return found


def load_safely(path: Path) -> Any:
    """The tensors in a file; UserError where it is something else, or holds code that loading would run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of foreign files; the error below says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what torch raises depends on what the file is
        raise UserError(f"features.weights={path} holds no weights: {type(error).__name__}") from error


def key_of(*parts: str) -> str:
    """A short name for what depends on all of these."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def features_folder(data_dir: Path) -> Path:
    """Where classifiers, features and statistics of data sets are kept."""
    return data_dir / "features"
