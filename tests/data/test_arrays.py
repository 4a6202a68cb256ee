"""Arrays that are prepared once, whole or not at all."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diffuse.data.arrays import Block, Recipe, Source, Split, prepare
from diffuse.system.errors import UserError
from tests.support.places import REPOSITORY

SHAPE = (3, 4, 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (30, *SHAPE), np.uint8)
LABELS = np.arange(30) % 7


def blocks(first: int, end: int, size: int = 8) -> Iterator[Block]:
    for at in range(first, end, size):
        rows = slice(at, min(at + size, end))
        yield IMAGES[rows], LABELS[rows]


def two_splits() -> dict[str, Source]:
    return {"train": Source(20, blocks(0, 20)), "test": Source(10, blocks(20, 30))}


def hand_made(sources: Callable[[], dict[str, Source]] = two_splits, **options) -> Recipe:
    return Recipe("made", SHAPE, options.pop("depends_on", {"by": "hand"}), sources, **options)


def never() -> dict[str, Source]:
    raise AssertionError("the sources were opened a second time")


def check(splits: dict[str, Split]) -> None:
    assert list(splits) == ["train", "test"]
    for split, rows in (("train", slice(20)), ("test", slice(20, 30))):
        assert splits[split].images.dtype == np.uint8
        assert splits[split].labels.dtype == np.int64
        np.testing.assert_array_equal(splits[split].images, IMAGES[rows])
        np.testing.assert_array_equal(splits[split].labels, LABELS[rows])


def folders(data_dir: Path) -> list[str]:
    """What is in the folder of prepared sets, locks aside."""
    return sorted(path.name for path in (data_dir / "prepared").iterdir() if path.suffix != ".lock")


def folder_of(data_dir: Path) -> Path:
    (name,) = folders(data_dir)
    return data_dir / "prepared" / name


def test_arrays_are_what_the_sources_gave(tmp_path):
    check(prepare(hand_made(), tmp_path))


def test_images_are_plain_files_mapped_into_memory(tmp_path):
    images = prepare(hand_made(), tmp_path)["train"].images
    assert isinstance(images, np.memmap)
    on_disk = np.load(folder_of(tmp_path) / "train_images.npy", allow_pickle=False)
    np.testing.assert_array_equal(on_disk, IMAGES[:20])
    images[:] = 0  # torch wants arrays that could be written to
    check(prepare(hand_made(never), tmp_path))


def test_a_set_may_have_no_labels(tmp_path):
    source = {"train": Source(20, ((images, None) for images, _ in blocks(0, 20)))}
    splits = prepare(hand_made(lambda: source), tmp_path)
    np.testing.assert_array_equal(splits["train"].images, IMAGES[:20])
    assert splits["train"].labels is None


def test_a_second_use_opens_no_source(tmp_path, caplog):
    prepare(hand_made(), tmp_path)
    caplog.clear()
    check(prepare(hand_made(never), tmp_path))
    assert not caplog.records


@pytest.mark.parametrize("changed", [{"depends_on": {"by": "hand", "edited": 1}}, {"depends_on": {}}])
def test_other_facts_mean_another_folder(changed, tmp_path):
    prepare(hand_made(), tmp_path)
    check(prepare(hand_made(**changed), tmp_path))
    assert len(folders(tmp_path)) == 2
    check(prepare(hand_made(never), tmp_path))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


DAMAGE = [
    ("train_images.npy", flip_a_byte),
    ("test_labels.npy", flip_a_byte),
    ("test_images.npy", cut),
    ("train_images.npy", lambda path: path.write_bytes(b"")),
    ("train_labels.npy", Path.unlink),
    ("about.json", Path.unlink),
    ("about.json", cut),
    ("about.json", lambda path: path.write_text("[]")),
    ("about.json", lambda path: path.write_bytes(b"\xff\xfe")),
    ("about.json", lambda path: path.write_text("{}")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_what_is_damaged_is_prepared_again(name, damage, tmp_path, caplog):
    prepare(hand_made(), tmp_path)
    damage(folder_of(tmp_path) / name)
    check(prepare(hand_made(), tmp_path))
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"{folder_of(tmp_path)} is damaged (")
    caplog.clear()
    check(prepare(hand_made(never), tmp_path))
    assert not caplog.records


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_in_the_middle_leaves_nothing(error, tmp_path):
    def half() -> Iterator[Block]:
        yield from blocks(0, 10)
        raise error

    with pytest.raises(error):
        prepare(hand_made(lambda: two_splits() | {"train": Source(20, half())}), tmp_path)
    assert folders(tmp_path) == []
    check(prepare(hand_made(), tmp_path))


def test_images_of_another_shape_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"shape \(3, 4, 4\), not \(1, 4, 4\)"):
        prepare(Recipe("made", (1, 4, 4), {}, two_splits), tmp_path)
    assert folders(tmp_path) == []


def test_a_split_without_an_image_is_refused(tmp_path):
    with pytest.raises(UserError, match="no image in its test split"):
        prepare(hand_made(lambda: two_splits() | {"test": Source(0, [])}), tmp_path)
    assert folders(tmp_path) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    prepare(hand_made(), tmp_path)
    folder = folder_of(tmp_path)
    left, other = folder.with_name(f".{folder.name}.tmp"), folder.with_name(".other-0123.tmp")
    folder.rename(left)
    other.mkdir()
    check(prepare(hand_made(), tmp_path))
    assert folders(tmp_path) == [other.name, folder.name]


def some_unreadable(bad: int) -> Callable[[], dict[str, Source]]:
    """The first `bad` training images cannot be read."""

    def sources() -> dict[str, Source]:
        source = Source(20 + bad, ())

        def found() -> Iterator[Block]:
            source.unreadable.extend(f"photo {number}.jpg (is not an image)" for number in range(bad))
            yield from blocks(0, 20)

        source.blocks = found()
        return two_splits() | {"train": source}

    return sources


def test_unreadable_images_are_named_with_the_key_that_skips_them(tmp_path):
    with pytest.raises(UserError) as caught:
        prepare(hand_made(some_unreadable(3)), tmp_path)
    assert str(caught.value).startswith(
        "3 of 33 images of made cannot be read: "
        "photo 0.jpg (is not an image); photo 1.jpg (is not an image); photo 2.jpg (is not an image)"
    )
    assert "dataset.skip_bad=true" in str(caught.value)
    assert folders(tmp_path) == []


def test_many_unreadable_images_are_listed_in_a_file(tmp_path):
    with pytest.raises(UserError, match="25 of 55 .* and 5 more, all of them listed in ") as caught:
        prepare(hand_made(some_unreadable(25)), tmp_path)
    (name,) = folders(tmp_path)
    listed = tmp_path / "prepared" / name
    assert str(listed) in str(caught.value)
    assert listed.read_text().splitlines() == [f"photo {number}.jpg (is not an image)" for number in range(25)]
    assert len(str(caught.value).splitlines()) <= 4


def test_unreadable_images_can_be_skipped(tmp_path, caplog):
    check(prepare(hand_made(some_unreadable(3), skip_bad=True), tmp_path))
    assert "3 of 33 images cannot be read and are left out" in caplog.text
    check(prepare(hand_made(never, skip_bad=True), tmp_path))
    with pytest.raises(UserError, match="3 of 33 images of made cannot be read: photo 0.jpg"):
        prepare(hand_made(never), tmp_path)
    check(prepare(hand_made(never, skip_bad=True), tmp_path))


def test_a_full_disk_is_noticed_before_the_work(tmp_path, monkeypatch):
    def unread() -> Iterator[Block]:
        raise AssertionError
        yield

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2000, used=560, free=1439))
    with pytest.raises(UserError, match="needs 1.4 kB in .*prepared, where 1.4 kB are free; .* data_dir="):
        prepare(hand_made(lambda: {"train": Source(20, unread()), "test": Source(10, unread())}), tmp_path)
    assert folders(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2000, used=560, free=1440))
    check(prepare(hand_made(), tmp_path))


def test_a_data_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match="^data_dir=.*taken cannot be used"):
        prepare(hand_made(), tmp_path / "taken")


def test_a_split_is_known_by_its_pixels_and_labels():
    pixel, label = IMAGES.copy(), LABELS.copy()
    pixel[29, 2, 3, 3] += 1
    label[29] += 1
    splits = [
        Split(IMAGES, LABELS),
        Split(pixel, LABELS),
        Split(IMAGES, label),
        Split(IMAGES),
        Split(IMAGES.reshape(30, 3, 2, 8), LABELS),
    ]
    assert len({split.sha256 for split in splits}) == len(splits)
    assert Split(np.asfortranarray(IMAGES), LABELS.copy()).sha256 == splits[0].sha256


def test_a_prepared_split_is_known_by_its_pixels_and_labels_alone(tmp_path):
    def known(name: str, images: np.ndarray, labels: np.ndarray | None) -> str:
        source = {"train": Source(len(images), [(images, labels)])}
        return prepare(hand_made(lambda: source, depends_on={"name": name}), tmp_path)["train"].sha256

    pixel, label = IMAGES.copy(), LABELS.copy()
    pixel[29, 2, 3, 3] += 1
    label[29] += 1
    first = known("first", IMAGES, LABELS)
    assert known("same", IMAGES, LABELS) == first
    assert len({first, known("b", pixel, LABELS), known("c", IMAGES, label), known("d", IMAGES, None)}) == 4


def in_a_process(data_dir: Path, *words: str) -> subprocess.Popen[str]:
    """`main` below in a process of its own; what it prints can be read, and it waits to be told to go on."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "tests.data.test_arrays", str(data_dir), *words],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def main(data_dir: Path) -> None:
    """Prepare, but say so after the first block, and wait until something is typed."""
    from diffuse.system.progress import log_to_console

    def halting() -> Iterator[Block]:
        with open(data_dir / "opened", "a") as file:
            file.write("once\n")
        yield IMAGES[:4], LABELS[:4]
        print("in the middle")
        sys.stdin.readline()
        yield from blocks(4, 20)

    log_to_console()
    check(prepare(hand_made(lambda: two_splits() | {"train": Source(20, halting())}), data_dir))
    print("right")


def test_two_processes_prepare_once(tmp_path):
    with in_a_process(tmp_path) as first:
        assert first.stdout.readline() == "in the middle\n"
        with in_a_process(tmp_path) as second:
            said = second.stdout.readline()
            first.communicate("go on\n", timeout=60)
            rest, _ = second.communicate("go on\n", timeout=60)
    assert said == "waiting for another process, which is preparing made\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert rest == "right\n"
    assert (tmp_path / "opened").read_text() == "once\n"
    assert len(folders(tmp_path)) == 1


def test_a_process_killed_in_the_middle_leaves_nothing_that_looks_usable(tmp_path):
    with in_a_process(tmp_path) as process:
        assert process.stdout.readline() == "in the middle\n"
        process.kill()
    assert process.returncode < 0
    (left,) = folders(tmp_path)
    assert left.startswith(".")
    check(prepare(hand_made(), tmp_path))
    assert folders(tmp_path) == [hand_made().folder_name]


PREPARING_LARGE_SETS = """
import json, sys
from pathlib import Path
import numpy as np
from diffuse.data.arrays import Recipe, Source, prepare

def made(count):
    return ((np.full((100, 3, 64, 64), at % 256, np.uint8), np.full(100, at)) for at in range(count // 100))

def most_so_far():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1000

peaks = []
for count in (1600, 16000):  # images of 12 kB
    splits = prepare(Recipe(str(count), (3, 64, 64), {}, lambda: {"train": Source(count, made(count))}), Path("."))
    assert splits["train"].images.shape[0] == count and splits["train"].images[-1].mean() == (count // 100 - 1) % 256
    peaks.append(most_so_far())
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory was used at most")
def test_memory_does_not_grow_with_the_data(tmp_path):
    """20 MB, then 200 MB. Not measured by ru_maxrss, which a process inherits from the one that starts it."""
    run = subprocess.run(
        [sys.executable, "-c", PREPARING_LARGE_SETS], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    small, large = json.loads(run.stdout.splitlines()[-1])
    assert large - small < 60


def test_a_folder_that_cannot_be_read_now_is_not_thrown_away(tmp_path):
    """A file system that is away for a moment is no damage."""
    prepare(hand_made(), tmp_path)
    (array,) = tmp_path.glob("prepared/*/train_images.npy")
    array.rename(array.with_name("kept.npy"))
    array.mkdir()
    with pytest.raises(UserError, match="cannot be used: .*choose another data_dir="):
        prepare(hand_made(), tmp_path)
    assert array.with_name("kept.npy").exists()


def test_a_script_without_a_guard_ends_instead_of_waiting_for_itself(tmp_path):
    """Its workers import it, and would prepare what it is preparing."""
    for number in range(4001):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{number}.png").write_bytes(b"no image")
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from diffuse.data import decoding\n"
        "from diffuse.data.datasets import folder\n"
        "decoding.cores = lambda: 2\n"  # on a machine with one, there would be no worker
        f"folder(Path({str(tmp_path)!r}), {str(tmp_path / 'photos')!r}).train\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert "must do so below: if __name__ == '__main__':" in done.stderr


if __name__ == "__main__":
    main(Path(sys.argv[1]))
