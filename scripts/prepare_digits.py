"""Make diffuse/data/digits.npz, the data set that ships with the package, from scikit-learn's copy.

    python scripts/prepare_digits.py

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, licence CC BY 4.0; scikit-learn distributes the 1,797 images of its test part. Each
is 8 x 8, one channel, values v from 0 to 16, stored as round(v * 255 / 16). Nothing else is changed.

The split is fixed here, once: a shuffle with a fixed seed, then the first 20% of each class are for testing.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TEST_SHARE = 0.2
OUT = Path(__file__).resolve().parent.parent / "diffuse" / "data" / "digits.npz"


def main() -> None:
    values, labels = load_digits(return_X_y=True)
    images = np.rint(values * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    order = np.random.RandomState(0).permutation(len(images))
    images, labels = images[order], labels[order].astype(np.int64)
    test = np.zeros(len(images), dtype=bool)
    for digit in range(10):
        (rows,) = np.nonzero(labels == digit)
        test[rows[: round(TEST_SHARE * len(rows))]] = True
    np.savez_compressed(
        OUT,
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
    )
    print(f"{OUT}: {(~test).sum()} images to train on, {test.sum()} to test on")


if __name__ == "__main__":
    main()
