"""A small classifier whose penultimate layer serves as features: trained once for each data set and kept by its hash.

For small or grey images, which Inception was not made for, and for machines without internet access. Its distances
compare models on the same data; they are not FIDs, and `Features.score_name` puts that into the name of every score.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.data.images import Dataset, to_float
from diffuse.scoring.features import (
    Features,
    Outputs,
    as_rgb,
    features_folder,
    key_of,
    load_safely,
    own_features_folder,
    require_file,
)
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import hold_lock, may_write, sha256, slug, write_atomic
from diffuse.system.progress import Progress, log
from diffuse.system.randomness import generator, reseed
from diffuse.system.signals import raise_pending

CLASSIFIER_VERSION = 1  # of the network and its training; to be raised with any change of either
STEPS, BATCH, RATE, BASE_CHANNELS, LARGE = 600, 128, 2e-3, 32, 24


class Classifier(nn.Module):
    """Three stages of two convolutions, average pooling (the features, [n, 4 * BASE_CHANNELS]), and a linear layer.

    stride: of the first convolution; 2 for large images, which is four times faster.
    """

    def __init__(self, classes: int, stride: int):
        super().__init__()
        widths = (3, BASE_CHANNELS, 2 * BASE_CHANNELS, 4 * BASE_CHANNELS)
        stages = []
        for stage, (before, after) in enumerate(pairwise(widths)):
            stages += [layer(before, after, stride if stage == 0 else 2), layer(after, after, 1)]
        self.stages = nn.Sequential(*stages)
        self.last = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Outputs:
        """uint8 images [n, 1 or 3, H, W] -> features [n, 4 * BASE_CHANNELS] and logits [n, classes]."""
        features = self.stages(to_float(as_rgb(images))).mean((2, 3))
        return {"features": features, "logits": self.last(features)}


def layer(before: int, after: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution, batch normalisation and a ReLU."""
    convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def classifier(
    device: Device, data: Callable[[], Dataset | None], data_dir: Path, weights: str | None = None
) -> Features:
    """The features of a classifier of this data set, which is trained on the training split (seconds) if there is none.

    weights  the file of such a classifier, from another machine say; null finds or makes it under data_dir
    """
    path = find_or_train(data(), data_dir, device) if weights is None else require_file(weights, "features.weights")
    content = load_safely(path)
    try:
        net = Classifier(len(content["net"]["last.bias"]), content["stride"])
        net.load_state_dict(content["net"])
        facts = {"trained_on": content["trained_on"], "test_accuracy": content["test_accuracy"]}
    except (LookupError, TypeError, RuntimeError) as error:
        raise UserError(f"features.weights={path} does not hold a classifier made by this program") from error
    resize, outputs = "none, grey as three equal channels", ("features", "logits")
    return Features("classifier", sha256(path), resize, outputs, device, net.eval().to(device.torch), facts)


def find_or_train(data: Dataset | None, data_dir: Path, device: Device) -> Path:
    """The file with the classifier of this data set, trained now if there is none."""
    if data is None:
        raise UsageError(
            "features=classifier is trained on a data set, and there is none here: give ckpt=, "
            "reference=DATASET:SPLIT or features.weights=FILE, or choose features=inception"
        )
    if not data.kind.classes or data.train.labels is None:
        raise UsageError(
            f"features=classifier needs labels, and {data.kind.name} has none: "
            "choose features=inception, or features=torchscript with your own network"
        )
    key = key_of(data.train.sha256, f"classifier {CLASSIFIER_VERSION}")
    path = features_folder(data_dir) / f"classifier-{slug(data.kind.name)}-{key}.pt"
    if not may_write(path):
        with suppress(OSError, UserError):
            load_safely(path)
            return path
        path = own_features_folder() / path.name
        log.info(f"{data_dir} may only be read: the classifier of {data.kind.name} is kept in {path.parent}")
    waiting = f"waiting for another process, which is training a classifier of {data.kind.name}"
    with hold_lock(path.with_suffix(".lock"), waiting=waiting):
        try:
            load_safely(path)
        except (OSError, UserError):  # missing or damaged
            (content,) = device.spread(partial(fit, device=device), [data])  # in one thread: the same on any CPU
            # Through an open file: torch would write a path that it is given into the file, and so into the hash.
            write_atomic(path, partial(torch.save, content), mode="wb")
    return path


def fit(data: Dataset, device: Device) -> Mapping[str, Any]:
    """A classifier trained on the training split, as plain tensors, with its accuracy on the test split."""
    images, labels = data.train.images, torch.from_numpy(np.asarray(data.train.labels))
    reseed("classifier", CLASSIFIER_VERSION)
    stride = 2 if min(data.kind.size) >= LARGE else 1
    net = Classifier(len(data.kind.classes), stride).to(device.torch)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    with torch.enable_grad(), Progress(f"training a classifier of {data.kind.name}", STEPS, "step") as progress:
        for step in range(STEPS):
            rows = np.sort(generator("classifier", step).permutation(len(images))[:BATCH])
            logits = net(torch.from_numpy(images[rows]).to(device.torch))["logits"]
            loss = F.cross_entropy(logits, labels[rows].to(device.torch), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            raise_pending()
            progress.advance()
    accuracy = accuracy_on_test(net.eval(), data, device)
    log.info(f"classifier of {data.kind.name}: {accuracy:.1%} accuracy on the test images")
    state = {name: weight.cpu() for name, weight in net.state_dict().items()}
    return {"net": state, "stride": stride, "trained_on": data.train.sha256, "test_accuracy": accuracy}


@torch.no_grad()
def accuracy_on_test(net: Classifier, data: Dataset, device: Device) -> float:
    """The share of test images whose class has the largest logit."""
    batches = torch.from_numpy(data.test.images).split(BATCH)
    predicted = torch.cat([net(batch.to(device.torch))["logits"].argmax(1).cpu() for batch in batches])
    return float(np.mean(predicted.numpy() == data.test.labels))
