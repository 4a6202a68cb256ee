"""Feature networks, which turn 8-bit images into the vectors that scores compare: the config group `features`.

A score means nothing without its feature network: the name, the hash of the weights and the way images are resized
stand beside every score.
"""

import hashlib
import sys
import time
import urllib.error
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.networks.script import check_scaling, load_script, script_features
from diffuse.options.dataset import default_data_dir
from diffuse.system.device import Device, send
from diffuse.system.errors import UserError
from diffuse.system.files import data_folder, sha256, slug
from diffuse.system.sizes import in_words

FEATURE_BATCH, FEATURE_BATCH_ON_CPU = 64, 16  # images in a call of a feature network
SPATIAL_CHANNELS = 7  # of 192, for sFID: as in ADM's evaluator
Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Features:
    """A feature network.

    name     `inception` and `classifier` are reserved for those two networks
    sha256   of the weights
    resize   how images are resized, and grey ones made RGB, in words
    outputs  which of `features` [n, D], `logits` [n, classes] and `spatial` [n, S] it has
    net      uint8 images [n, C, H, W] on the device -> its outputs
    facts    further entries of the protocol
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

        Every call has the same number of images, filled up with black ones. On a CPU, where results differ in the last
        bits between batch sizes, the vectors of an image then depend on that image alone; CUDA looks for the fastest
        convolutions once.
        """
        rows = FEATURE_BATCH_ON_CPU if self.device.torch.type == "cpu" else FEATURE_BATCH

        def call(start: int) -> dict[str, Tensor]:
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + rows]))
            padded = F.pad(batch, (0, 0, 0, 0, 0, 0, 0, rows - len(batch)))
            with self.device.in_float32():
                found = self.net(send(padded, self.device.torch))
            return {name: found[name][: len(batch)] for name in self.outputs}

        parts = self.device.spread(call, range(0, len(images), rows))
        return {name: torch.cat([part[name] for part in parts]).float().cpu().numpy() for name in self.outputs}

    def of_all(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Each batch of images with its outputs, in order; computed by all processes that offer it."""
        return self.device.processes.map("features", batches, self)

    def images_per_second(self, size: tuple[int, int]) -> float:
        """The speed on images [H, W], measured on one full call a core; `width` has warmed the network up."""
        count = FEATURE_BATCH_ON_CPU * self.device.workers.count if self.device.workers else FEATURE_BATCH
        images = np.zeros((count, 1, *size), np.uint8)
        started = time.monotonic()
        self(images)
        return len(images) / (time.monotonic() - started)

    def width(self, size: tuple[int, int]) -> int:
        """The number of features of an image [H, W]. Raises UserError where the network refuses that size."""
        try:
            return int(self(np.zeros((1, 1, *size), np.uint8))["features"].shape[1])
        except (RuntimeError, LookupError, AttributeError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
            raise UserError(
                f"features={self.name} fails on images of {in_words(*size)}, or does not return vectors: {reason}\n"
                "Its input is float32 [n, 3, H, W], its output must be [n, ...]; features.size=N resizes the images"
            ) from error

    @property
    def protocol(self) -> dict[str, Any]:
        """What a score depends on; recorded with every score."""
        return {"name": self.name, "sha256": self.sha256, "resize": self.resize, "dtype": "float32", **self.facts}

    def score_name(self, score: str) -> str:
        """The name of a score with these features: `fid` with Inception, the standard, and `fid_NAME` with others."""
        return score if self.name == "inception" else f"{score}_{self.name}"


def as_rgb(images: Tensor) -> Tensor:
    """[n, 1 or 3, H, W] -> [n, 3, H, W]: the channel of grey images three times, colour images unchanged."""
    return images.expand(-1, 3, -1, -1)


def inception(device: Device, weights: str | None = None) -> Features:
    """The Inception network of FID, KID and the Inception Score: TensorFlow's of 2015-12-05, as torch-fidelity has it.

    weights   a file with its weights; null uses the file in torch's cache, and downloads it if it is not there
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = download_inception() if weights is None else require_file(weights, "features.weights")
    load_safely(path)  # torch-fidelity would unpickle any file
    try:
        extractor = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        ).to(device.torch, memory_format=torch.channels_last)  # on a CPU its pooling is 8 times as fast so
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"features.weights={path} does not hold the weights of FID's Inception network") from error
    maps: dict[int, Tensor] = {}  # by the thread that calls the network

    def keep(_: Any, __: Any, output: Tensor) -> None:
        maps[get_ident()] = output[:, :SPATIAL_CHANNELS].flatten(1)

    extractor.Mixed_6d.branch1x1.register_forward_hook(keep)  # TensorFlow's mixed_6/conv

    def net(images: Tensor) -> Outputs:
        features, logits = extractor(as_rgb(images))
        return {"features": features, "logits": logits, "spatial": maps.pop(get_ident())}

    # Some published copies of the weights lack the last layer, which only the Inception Score needs.
    outputs = ("features", "logits", "spatial") if extractor.fc.weight.any() else ("features", "spatial")
    resize = "bilinear to 299 x 299 as TensorFlow 1 did, grey as three equal channels (torch-fidelity)"
    return Features("inception", sha256(path), resize, outputs, device, net)


def download_inception() -> Path:
    """The file of weights that torch-fidelity uses, in torch's cache; downloaded if it is not there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as URL

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            hash_prefix = path.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(URL, str(path), hash_prefix, progress=sys.stderr.isatty())
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"features=inception needs its weights (96 MB), and the download failed: {error}\n"
                f"Download {URL}\n"
                f"to {path}, or name the file: features.weights=FILE\n"
                "features=classifier needs no download: a small network trained on a data set with labels"
            ) from error
    return path


def torchscript(device: Device, path: str, size: int | None = None, low: float = 0.0, high: float = 255.0) -> Features:
    """Any network saved by torch.jit.save. Its input is float32 images [n, 3, H, W]; its output [n, ...] is flattened.

    Such a file is a program, which is run: take it only from where you would take a program from.

    If its `forward` has an argument return_features, as in StyleGAN's copy of Inception, that is set to true: otherwise
    the output would be class probabilities.

    path   the file
    size   images are resized to size x size, bilinear with antialiasing; null leaves them as they are
    low    the value of black in the network's input
    high   the value of white
    """
    check_scaling(size, low, high)
    file = require_file(path, "features.path")
    script = load_script(file, "features.path", device.torch)

    def net(images: Tensor) -> Outputs:
        return {"features": script_features(script, as_rgb(images).float(), size, low, high)}

    scaling = "none" if size is None else f"bilinear with antialiasing to {size} x {size}"
    resize = f"{scaling}, grey as three equal channels, pixels from {low:g} to {high:g}"
    name = slug(file.stem)
    if name in ("", "inception", "classifier"):  # reserved
        name = f"torchscript-{name}"
    return Features(name, sha256(file), resize, ("features",), device, net)


def require_file(path: str, key: str) -> Path:
    """The absolute path of an existing file; UserError, with the key, where there is none."""
    found = Path(path).expanduser().absolute()
    if not found.is_file():
        raise UserError(f"{key}={path} must be a file, and there is none")
    return found


def load_safely(path: Path) -> Any:
    """The tensors in a file; UserError where it holds something else, such as code that loading would run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of some foreign files; the error below is enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many types, depending on the file
        raise UserError(
            f"features.weights={path} does not hold weights ({type(error).__name__}); remove it if it was downloaded"
        ) from error


def key_of(*parts: str) -> str:
    """A short hash of all the parts, for file names."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def features_folder(data_dir: Path) -> Path:
    """Where classifiers, and the features and statistics of data sets, are kept."""
    return data_dir / "features"


def own_features_folder() -> Path:
    """The same in one's own data_dir, for where another's may only be read."""
    return features_folder(data_folder(default_data_dir()))
