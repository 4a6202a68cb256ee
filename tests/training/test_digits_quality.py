"""The recipes of the digits, judged by three classifiers trained on real ones."""

import os
import time

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from diffuse.data.datasets import digits
from tests.support.commands import diffuse


def votes(images: np.ndarray) -> np.ndarray:
    """What each classifier calls each image, [3, n]."""
    real = digits().train
    judges = [SVC(C=10), KNeighborsClassifier(3), MLPClassifier((64,), max_iter=600, random_state=0)]
    flat = images.reshape(len(images), -1) / 255
    return np.stack([judge.fit(real.images.reshape(-1, 64) / 255, real.labels).predict(flat) for judge in judges])


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "least"), [("digits", 0.96), ("digits_fast", 0.94)])
def test_digits_of_a_recipe_are_hard_to_tell_from_real(recipe, least, tmp_path):
    """Real test digits: 97.5% agreement."""
    started = time.monotonic()
    words = [f"recipe={recipe}", "name=run"]
    done = diffuse("train", *words, cwd=tmp_path, timeout=1200, OMP_NUM_THREADS=str(os.cpu_count()))
    print(f"trained in {time.monotonic() - started:.0f} s")
    assert done.returncode == 0, done.stderr
    words = ["ckpt=outputs/run", "n=1000", "sampler=training", "name=judged"]
    assert diffuse("sample", *words, cwd=tmp_path).returncode == 0
    drawn = np.load(tmp_path / "outputs/run/samples/judged/samples.npz")["arr_0"]
    first, second, third = votes(drawn)
    agreement = ((first == second) & (second == third)).mean()
    shares = np.bincount(first, minlength=10) / len(first)
    print(f"agreement {agreement:.3f}, shares {shares}")
    assert agreement >= least
    assert shares.min() >= 0.05
    assert shares.max() <= 0.16


@pytest.mark.slow
def test_guided_digits_are_of_the_class_that_was_asked_for(tmp_path):
    """At scale 2 all three agree with the class; real test digits: 97.5% of them."""
    threads = str(os.cpu_count())
    done = diffuse("train", "name=labels", cwd=tmp_path, timeout=1200, OMP_NUM_THREADS=threads)
    assert done.returncode == 0, done.stderr
    for scale in ("1", "2"):
        words = ["ckpt=outputs/labels", "n=1000", "sampler=deis", "sampler.steps=20", f"name=scale-{scale}"]
        typed = ["guidance=classifier_free", f"guidance.scale={scale}"]
        assert diffuse("sample", *words, *typed, cwd=tmp_path).returncode == 0
        drawn = np.load(tmp_path / f"outputs/labels/samples/scale-{scale}/samples.npz")
        agreement = (votes(drawn["arr_0"]) == drawn["arr_1"]).all(0).mean()
        print(f"scale {scale}: {agreement:.3f}")
    assert agreement >= 0.97
