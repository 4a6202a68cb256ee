"""A small classifier whose penultimate layer serves as features: trained once on the data set itself, kept by its hash.

For images that Inception was not made for, small or grey, and for machines without a network. Its distances say
which of two models is nearer to the data; they are no FIDs, and `Features.named` says so in every name.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.data.images import Dataset, to_float
from diffuse.scoring.features import Features, Outputs, as_rgb, existing, features_folder, key_of, load_safely
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import hold_lock, make_folder, sha256, slug, write_atomic
from diffuse.system.progress import Progress, log
from diffuse.system.randomness import generator, reseed
from diffuse.system.signals import raise_pending

VERSION = 1  # of the network and its training; to be raised with any change of either
STEPS, BATCH, RATE, WIDTH, LARGE = 600, 128, 2e-3, 32, 24


class Classifier(nn.Module):
    """Three stages of two convolutions, the average over pixels [n, 4 * WIDTH] (the features), and a linear layer.

    stride: of the first convolution; 2 where images are large enough to be looked at in halves, four times faster.
    """

    def __init__(self, classes: int, stride: int):
        super().__init__()
        widths = (3, WIDTH, 2 * WIDTH, 4 * WIDTH)
        stages = []
        for stage, (before, after) in enumerate(pairwise(widths)):
            stages += [layer(before, after, stride if stage == 0 else 2), layer(after, after, 1)]
        self.stages = nn.Sequential(*stages)
        self.last = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images [n, 1 or 3, H, W] -> features [n, 4 * WIDTH] and logits [n, classes]."""
        features = self.stages(to_float(as_rgb(images))).mean((2, 3))
        return features, self.last(features)


def layer(before: int, after: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution, normalised over the batch, and a ReLU."""
    convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def classifier(
    device: Device, data: Callable[[], Dataset | None], data_dir: Path, weights: str | None = None
) -> Features:
    """The features of a classifier of this data set: found, or trained now (seconds) on its training split.

    weights  a file that was made in this way on another machine; null finds or makes it under data_dir
    """
    path = trained_on(data(), data_dir, device) if weights is None else existing(weights, "features.weights")
    content = load_safely(path)
    try:
        if not isinstance(content, dict):
            raise TypeError("a tensor, say")
        net = Classifier(len(content["net"]["last.bias"]), content["stride"])
        net.load_state_dict(content["net"])
        facts = {"trained_on": content["trained_on"], "test_accuracy": content["test_accuracy"]}
    except (LookupError, TypeError, RuntimeError) as error:
        raise UserError(f"features.weights={path} holds no classifier of this program") from error
    return Features(
        name="classifier",
        sha256=sha256(path),
        resize="none, grey as three equal channels",
        outputs=("features", "logits"),
        device=device,
        net=partial(both, net.eval().to(device.torch)),
        facts=facts,
    )


def both(net: Classifier, images: Tensor) -> Outputs:
    features, logits = net(images)
    return {"features": features, "logits": logits}


def trained_on(data: Dataset | None, data_dir: Path, device: Device) -> Path:
    """The file with the classifier of this data set, trained now if it is not there."""
    if data is None:
        raise UsageError(
            "features=classifier is trained on a data set, and there is none here: give ckpt=, "
            "reference=DATASET:SPLIT or features.weights=FILE, or take features=inception"
        )
    if not data.kind.classes or data.train.labels is None:
        raise UsageError(
            f"features=classifier needs labels, and {data.kind.name} has none: "
            "take features=inception, or features=torchscript with a network of your own"
        )
    key = key_of(data.train.sha256, f"classifier {VERSION}")
    path = features_folder(data_dir) / f"classifier-{slug(data.kind.name)}-{key}.pt"
    make_folder(path.parent)
    waiting = f"waiting for another process, which is training a classifier of {data.kind.name}"
    with hold_lock(path.with_suffix(".lock"), if_taken=lambda: log.info(waiting)):
        if not is_whole(path):
            (content,) = device.spread(partial(fitted, device=device), [data])  # by one thread: the same on any CPU
            # By way of an open file: given a name, torch would write it into the file, and the hash would follow it.
            write_atomic(path, partial(torch.save, content), mode="wb")
    return path


def is_whole(path: Path) -> bool:
    """Whether a classifier is there and can be read."""
    try:
        return bool(load_safely(path))
    except (OSError, UserError):
        return False


def fitted(data: Dataset, device: Device) -> Mapping[str, Any]:
    """A classifier trained on the training split, as plain tensors, with its accuracy on the test split."""
    images, labels = data.train.images, torch.from_numpy(np.asarray(data.train.labels))
    reseed("classifier", VERSION)
    stride = 2 if data.kind.size >= LARGE else 1
    net = Classifier(len(data.kind.classes), stride).to(device.torch)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    with torch.enable_grad(), Progress(f"training a classifier of {data.kind.name}", STEPS, "step") as progress:
        for step in range(STEPS):
            rows = np.sort(generator("classifier", step).permutation(len(images))[:BATCH])
            batch = torch.from_numpy(images[rows]).to(device.torch)
            loss = F.cross_entropy(net(batch)[1], labels[rows].to(device.torch), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            raise_pending()
            progress.advance()
    accuracy = accuracy_on_test(net.eval(), data, device)
    log.info(f"classifier of {data.kind.name}: {accuracy:.1%} of the test images are told right")
    state = {name: weight.cpu() for name, weight in net.state_dict().items()}
    return {"net": state, "stride": stride, "trained_on": data.train.sha256, "test_accuracy": accuracy}


@torch.no_grad()
def accuracy_on_test(net: Classifier, data: Dataset, device: Device) -> float:
    """The share of test images whose class has the largest logit."""
    right, test = 0, data.test
    assert test.labels is not None
    for start in range(0, len(test.images), BATCH):
        images = torch.from_numpy(test.images[start : start + BATCH]).to(device.torch)
        told = net(images)[1].argmax(1).cpu().numpy()
        right += int((told == test.labels[start : start + BATCH]).sum())
    return right / len(test.images)
