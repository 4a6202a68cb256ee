"""Judge runs on small images of classes: do three classifiers agree on what is drawn, how near is it to the data?

    python scripts/recipes/judge.py outputs/RUN [outputs/RUN ...] [--n 10000] [-- sampler=ddim sampler.steps=50 ...]

For each run: n images drawn with the sampler of its own grids (or with the words after --); the share of them that a
support vector machine, 3 nearest neighbours and a small perceptron, trained on the real training images, call the same;
`fid_classifier`, and the shares of images that are nearer to a training image than a fresh one would be, by features
and by pixels (0.5 is a fresh image's). Prints a row of a Markdown table for each run, and their mean and standard
deviation. The first row is that of the real test images.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from diffuse.data.arrays import Split
from diffuse.options.dataset import build_named_dataset, default_data_dir
from diffuse.system.files import data_folder, slug

MOST = 10_000  # training images of a judge
SCORES = ("fid_classifier", "memorisation_classifier", "memorisation_pixels")


def judges_of(real: Split) -> list[SVC | KNeighborsClassifier | MLPClassifier]:
    """Three classifiers of different kinds, trained on real images."""
    chosen = np.random.default_rng(0).permutation(len(real.images))[:MOST]
    images, labels = flat(real.images[chosen]), real.labels[chosen]
    judges = [SVC(C=10), KNeighborsClassifier(3), MLPClassifier((64,), max_iter=600, random_state=0)]
    return [judge.fit(images, labels) for judge in judges]


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255


def agreement(judges: list[SVC | KNeighborsClassifier | MLPClassifier], images: np.ndarray) -> float:
    """The share of images that all judges call the same."""
    first, second, third = (judge.predict(flat(images)) for judge in judges)
    return float(((first == second) & (second == third)).mean())


def drawn(run: Path, n: int, words: list[str]) -> Path:
    """The folder of n images of a run, drawn once."""
    folder = run / "samples" / slug(f"judged-{n}-{'-'.join(words)}")
    subprocess.run(
        ["diffuse", "sample", f"ckpt={run}", f"n={n}", f"name={folder.name}", "batch_size=256", *words], check=True
    )
    return folder


def scores(run: Path, folder: Path, n: int) -> dict[str, float]:
    """The scores of images in a folder."""
    metrics = ["metrics=[fid,memorisation]", "features=classifier"]
    subprocess.run(
        ["diffuse", "eval", f"ckpt={run}", f"samples={folder}", f"n={n}", f"name={folder.name}", *metrics], check=True
    )
    found = json.loads((run / "eval" / folder.name / "eval.json").read_text())["sample_scores"]
    return {name: found[name]["value"] for name in SCORES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("words", nargs="*", help="after --: how to draw")
    asked, words = parser.parse_known_args()
    words = [word for word in words if word != "--"] or ["sampler=training"]
    data = build_named_dataset(asked.dataset, data_folder(default_data_dir()))
    judges = judges_of(data.train)
    rows = []
    print(f"| run | agreement | {' | '.join(SCORES)} |")
    print("|---|--:|--:|--:|--:|")
    print(f"| real test images | {agreement(judges, data.test.images):.4f} | | 0.5 | 0.5 |")
    for run in asked.runs:
        folder = drawn(run, asked.n, words)
        found = scores(run, folder, asked.n)
        judged = agreement(judges, np.load(folder / "samples.npz")["arr_0"])
        rows.append([judged, *found.values()])
        print(f"| {run.name} | {' | '.join(f'{value:.4f}' for value in rows[-1])} |")
    spread = [f"{mean:.4f} ± {std:.4f}" for mean, std in zip(np.mean(rows, 0), np.std(rows, 0), strict=True)]
    print(f"| mean, standard deviation | {' | '.join(spread)} |")


if __name__ == "__main__":
    main()
