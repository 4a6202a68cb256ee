"""Are FID, KID, precision and recall those of torch-fidelity's own command line? From arrays, a folder and an npz file.

    python scripts/agreement_with_torch_fidelity.py --weights FILE [--data-dir DIR] [--count 1000]

Two sets of real CIFAR-10 images that differ: test images of all classes, and training images of the first five.
Expected: relative differences below 1e-3. Cost: eight times --count images through Inception, 10 minutes for 1,000 on
one core of a server.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffuse.options.dataset import build_named_dataset
from diffuse.scoring.distances import KID_SUBSET_SIZE, frechet_distance, kernel_distance, precision_recall, statistics
from diffuse.scoring.features import inception
from diffuse.system.device import Device

NAMES = {
    "fid": "frechet_inception_distance",
    "kid": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--weights", required=True)
    options.add_argument("--data-dir")
    options.add_argument("--count", type=int, default=1000)
    given = options.parse_args()
    data = build_named_dataset("cifar10", given.data_dir)
    assert data.train.labels is not None
    some = {
        "a": data.test.images[: given.count],
        "b": data.train.images[np.flatnonzero(data.train.labels < 5)[: given.count]],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, images in some.items():
            save(folder, side, np.asarray(images))
        theirs = of_torch_fidelity(folder, given.weights, given.count)
        ours = {
            "arrays": of_arrays(some, given.weights),
            "folder": of_command(folder, "a", "b.npz", given.weights),
            "npz": of_command(folder, "a.npz", "b.npz", given.weights),
        }
    print(f"{given.count} images on each side, torch {torch.__version__}")
    print(f"{'':10} {'torch-fidelity':>16} " + " ".join(f"{name:>16} {'relative':>9}" for name in ours))
    for name, value in theirs.items():
        found = " ".join(f"{mine[name]:16.8g} {abs(mine[name] / value - 1):9.1e}" for mine in ours.values())
        print(f"{name:10} {value:16.8g} {found}")


def save(folder: Path, side: str, images: np.ndarray) -> None:
    """The images as PNG files and as an npz file."""
    (folder / side).mkdir()
    pixels = images.transpose(0, 2, 3, 1)
    np.savez(folder / f"{side}.npz", pixels)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / side / f"{number:05d}.png")


def of_torch_fidelity(folder: Path, weights: str, count: int) -> dict[str, float]:
    """Its command line, with the network that everybody means; its own default for precision and recall is VGG-16."""
    network = ["--feature-extractor", "inception-v3-compat", "--feature-extractor-weights-path", weights]
    scores, rest = ["--fid", "--kid", "--prc"], ["--cpu", "--json", "--silent", "--no-cache"]
    rest += ["--kid-subset-size", str(min(KID_SUBSET_SIZE, count))]
    sides = ["--input1", str(folder / "a"), "--input2", str(folder / "b")]
    command = [str(Path(sys.executable).with_name("fidelity")), *scores, *network, *sides, *rest]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values = json.loads(said[said.index("{") :])
    return {name: values[key] for name, key in NAMES.items()}


def of_arrays(some: dict[str, np.ndarray], weights: str) -> dict[str, float]:
    """The library, from arrays in memory."""
    features = inception(Device("cpu", "float32"), weights)
    a, b = (features(np.asarray(images))["features"] for images in some.values())
    precision, recall = precision_recall(a, b)
    fid = frechet_distance(statistics(a), statistics(b))
    return {"fid": fid, "kid": kernel_distance(a, b)[0], "precision": precision, "recall": recall}


def of_command(folder: Path, samples: str, reference: str, weights: str) -> dict[str, float]:
    """`diffuse eval` on files."""
    scores = f"metrics=[fid,kid,precision_recall] features.weights={weights} name=of-{samples} data_dir={folder}/data"
    places = f"samples={folder / samples} reference={folder / reference}"
    subprocess.run(
        [sys.executable, "-m", "diffuse", "eval", *places.split(), *scores.split(), "device=cpu"],
        cwd=folder,
        check=True,
    )
    facts = json.loads((folder / "outputs" / "eval" / f"of-{samples}" / "eval.json").read_text())
    return {name: facts["sample_scores"][name]["value"] for name in NAMES}


if __name__ == "__main__":
    main()
