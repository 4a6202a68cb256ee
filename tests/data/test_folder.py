"""dataset=folder: any folder of images, its classes, its splits, and what is prepared anew."""

import os
import sys
from pathlib import Path

import pytest

from diffuse.data import decoding, own_images
from diffuse.system.errors import UserError
from tests.support.making import everything, numbers, opened, photo, random, save, save_all


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "My photos"


def test_a_folder_without_subfolders_has_no_classes(root):
    save_all(root, *(f"{number}.png" for number in range(10)))
    data = opened(root)
    assert everything(data) == list(range(10))
    assert data.kind.name == "My-photos"
    assert data.kind.classes == []
    assert data.train.labels is None
    assert data.test.labels is None


def test_subfolders_are_classes(root):
    save_all(root, "dog/0.png", "cat/1.png", "dog/2.png", "an ant/3.png", "dog/old/deep/4.png")
    data = opened(root, holdout=0.4)
    assert data.kind.classes == ["an ant", "cat", "dog"]
    right = {0: 2, 1: 1, 2: 2, 3: 0, 4: 2}
    assert everything(data) == sorted(right)
    for split in (data.train, data.test):
        assert [right[number] for number in numbers(split)] == split.labels.tolist()


def test_images_beside_the_subfolders_have_no_class_so_none_has(root):
    save_all(root, "dog/0.png", "cat/1.png", "2.png")
    data = opened(root)
    assert everything(data) == [0, 1, 2]
    assert data.kind.classes == []
    assert data.train.labels is None


def test_only_images_that_are_not_hidden_are_taken(root):
    save_all(root, "0.png", "1.PNG", "2.Jpeg", "3.webp", "4.bmp", "a/b/5.JPG", ".6.png", ".thumbs/7.png", "a/.b/8.png")
    for name in ("notes.txt", "png", "list.png.txt"):
        (root / name).write_text("no image")
    names = own_images.image_files(root)
    assert names == ["0.png", "1.PNG", "2.Jpeg", "3.webp", "4.bmp", "a/b/5.JPG"]
    assert len(opened(root).train.images) + len(opened(root).test.images) == 6


def test_links_are_followed_but_not_in_a_circle(root):
    save_all(root, "a/0.png", "a/1.png")
    save_all(root.parent / "elsewhere", "2.png", "3.png", "4.png")
    (root / "a" / "up").symlink_to(root)
    (root / "b").symlink_to(root.parent / "elsewhere")
    (root / "b" / "b").symlink_to(root / "b")
    assert own_images.image_files(root) == ["a/0.png", "a/1.png", "b/2.png", "b/3.png", "b/4.png"]


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(root):
    save_all(root, "0.png", "1.png", "2.png")
    (root / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png \(does not exist\)"):
        opened(root).train.images  # noqa: B018
    assert everything(opened(root, skip_bad=True)) == [0, 1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_may_be_in_any_encoding(root):
    save_all(root, "0.png", "1.png", "größe 2.png")
    bad = os.fsencode(root) + b"/gr\xf6\xdfe.png"
    with open(bad, "wb") as file:
        file.write(b"no image")
    with pytest.raises(UserError, match="e.png") as caught:
        opened(root).train.images  # noqa: B018
    str(caught.value).encode()
    assert everything(opened(root, skip_bad=True, holdout=0.5)) == [0, 1, 2]


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_a_folder_may_be_split_already(test, root):
    save_all(root, "train/dog/0.png", "train/cat/1.png", f"{test}/cat/2.png", "train/dog/3.png", "other/4.png")
    data = opened(root)
    assert numbers(data.train) == [1, 0, 3]
    assert numbers(data.test) == [2]
    assert data.kind.classes == ["cat", "dog"]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1, 1], [0])


def test_a_test_folder_goes_before_a_validation_folder(root):
    save_all(root, "train/0.png", "val/1.png", "test/2.png")
    assert (numbers(opened(root).train), numbers(opened(root).test)) == ([0], [2])


@pytest.mark.parametrize(("share", "count"), [(0.1, 12), (0.25, 30), (0.001, 1), (0.9999, 119)])
def test_the_share_asked_for_is_held_out(share, count, root):
    save_all(root, *(f"{number}.png" for number in range(120)))
    data = opened(root, holdout=share)
    assert len(data.test.images) == count
    assert everything(data) == list(range(120))


def test_what_is_held_out_is_fixed_by_names_and_seed(root):
    save_all(root, *(f"{number}.png" for number in range(60)))
    root.with_name("copy").mkdir()
    for path in root.iterdir():
        root.with_name("copy").joinpath(path.name).write_bytes(path.read_bytes())
    held = numbers(opened(root).test)
    assert numbers(opened(root.with_name("copy")).test) == held
    assert numbers(opened(root, split_seed=1).test) != held


def test_what_is_held_out_hardly_moves_when_a_file_is_added(root):
    save_all(root, *(f"{number}.png" for number in range(100)))
    before = set(numbers(opened(root).test))
    for added in range(100, 104):
        save(root / f"{added}.png", photo(added))
        after = set(numbers(opened(root).test))
        assert len(before - after) <= 1
        assert len(after - before) <= 1
        before = after


def test_editing_an_image_prepares_anew(root):
    save_all(root, "0.png", "1.png", "2.png")
    assert everything(opened(root)) == [0, 1, 2]
    save(root / "1.png", photo(7))
    os.utime(root / "1.png", ns=(1, 1))  # the clock of files may tick too slowly for a test
    assert everything(opened(root)) == [0, 2, 7]
    (root / "0.png").rename(root / "a.png")
    assert everything(opened(root)) == [0, 2, 7]
    assert len(list(root.parent.glob("data/prepared/My-photos-*"))) == 3


def test_moving_an_image_to_another_class_prepares_anew(root):
    """Though the files and their order stay as they are."""
    save_all(root, "cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png")
    before = opened(root)
    assert sorted([*before.train.labels, *before.test.labels]) == [0, 0, 1, 1]
    (root / "cat" / "1.png").rename(root / "dog" / "1.png")
    after = opened(root)
    assert sorted([*after.train.labels, *after.test.labels]) == [0, 1, 1, 1]


def test_size_channels_and_fit_prepare_anew(root):
    save_all(root, "0.png", "1.png", "2.png")
    save(root / "1.png", random(4, 8, 3))
    kinds = [{}, {"size": 5}, {"channels": 1}, {"fit": "resize"}]
    seen = {opened(root, **options).train.images.tobytes() for options in kinds}
    assert len(seen) == len(kinds)
    assert [opened(root, **options).train.images.shape[1:] for options in kinds] == [
        (3, 4, 4),
        (3, 5, 5),
        (1, 4, 4),
        (3, 4, 4),
    ]


def test_pad_and_flip_change_no_array(root):
    save_all(root, "0.png", "1.png")
    data = opened(root, pad=2, flip=True)
    assert everything(data) == [0, 1]
    assert everything(opened(root)) == [0, 1]
    assert (data.flip, data.kind.padded_size) == (True, (8, 8))
    assert len(list(root.parent.glob("data/prepared/My-photos-*"))) == 1


def test_labels_stay_with_their_images_when_some_are_skipped(root, monkeypatch):
    monkeypatch.setattr(decoding, "BLOCK_IMAGES", 8)
    save_all(root, *(f"{number % 10}/{number:03}.png" for number in range(40)))
    bad = {0, 1, 5, 17, 20, 38}
    for number in bad:
        (root / f"{number % 10}/{number:03}.png").write_text("no image")
    with pytest.raises(UserError, match=r"^6 of 40 images of My-photos .*: .*7/017\.png \(is not an image\)"):
        opened(root).train.images  # noqa: B018
    data = opened(root, skip_bad=True)
    assert everything(data) == sorted(set(range(40)) - bad)
    for split in (data.train, data.test):
        assert split.labels.tolist() == [number % 10 for number in numbers(split)]
