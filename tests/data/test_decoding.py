"""Image files of every kind, and what comes of them."""

import os
import select
import signal
import struct
import subprocess
import sys
import warnings
from multiprocessing import active_children, connection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuse.data import decoding
from diffuse.data.decoding import FITS, Shape, centre_140, decode

NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
COLOUR, GREY = Shape(3, (8, 8), FITS["crop"]), Shape(1, (8, 8), FITS["crop"])
# Blocks of 8 x 8 pixels, each with a colour of its own: what JPEG keeps, and no turn or mirror leaves alone.
BLOCKS = np.kron(np.random.default_rng(1).integers(0, 256, (2, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def saved(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> str:
    image = Image.fromarray(pixels)
    assert mode is None or image.mode == mode
    image.save(path, **options)
    return str(path)


def planes(pixels: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, C] -> [C, H, W], in colour."""
    pixels = np.asarray(pixels, np.int64)
    return np.stack([pixels] * 3) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.reshape(alpha.shape + (1,) * (pixels.ndim - alpha.ndim)) / 255
    return pixels * share + 255 * (1 - share)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.PNG"])
def test_a_file_of_the_right_size_is_untouched(name, tmp_path):
    read = COLOUR.read(saved(tmp_path / name, NOISE[..., :3], lossless=True))
    assert read.dtype == np.uint8
    assert read.shape == (3, 8, 8)
    np.testing.assert_array_equal(read, planes(NOISE[..., :3]))


def test_grey_is_the_same_in_all_channels(tmp_path):
    path = saved(tmp_path / "a.png", NOISE[..., 0], "L")
    np.testing.assert_array_equal(COLOUR.read(path), planes(NOISE[..., 0]))
    np.testing.assert_array_equal(GREY.read(path), NOISE[None, ..., 0])


def test_colour_becomes_grey_by_its_luma(tmp_path):
    """The weights of ITU-R 601."""
    read = GREY.read(saved(tmp_path / "a.png", NOISE[..., :3]))
    assert read.shape == (1, 8, 8)
    np.testing.assert_allclose(read[0], NOISE[..., :3] @ np.array([0.299, 0.587, 0.114]), atol=1)


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", [0, 1, 2, 3]), ("LA", [0, 3])])
def test_transparent_parts_lie_on_white(mode, channels, tmp_path):
    pixels = NOISE[..., channels].copy()
    pixels[0, :4, -1], pixels[0, 4:, -1] = 0, 255
    colours = pixels[..., :-1] if mode == "RGBA" else pixels[..., 0]
    read = COLOUR.read(saved(tmp_path / "a.png", pixels, mode))
    np.testing.assert_allclose(read, planes(np.rint(on_white(colours, pixels[..., -1]))), atol=1)
    assert (read[:, 0, :4] == 255).all()
    np.testing.assert_array_equal(read[:, 0, 4:], planes(colours)[:, 0, 4:])


def test_a_grey_reading_of_a_transparent_file_lies_on_white_too(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[4:, :, 3] = 128
    read = GREY.read(saved(tmp_path / "a.png", pixels))
    assert (read[0, :4] == 255).all()
    np.testing.assert_allclose(read[0, 4:], 127, atol=1)


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255])])
def test_palettes(transparency, tmp_path):
    """Transparency is the number of one colour that is not there, or an opacity for each of the first colours."""
    palette, numbers = NOISE.reshape(-1, 4)[:16, :3], NOISE[..., 3] % 16
    image = Image.fromarray(numbers)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    opacity = np.full(16, 255)
    if transparency == 3:
        opacity[3] = 0
    elif transparency:
        opacity[:3] = list(transparency)
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode == "P"
    read = COLOUR.read(str(tmp_path / "a.png"))
    np.testing.assert_allclose(read, planes(np.rint(on_white(palette, opacity))[numbers]), atol=1)


def test_one_colour_that_stands_for_nothing_is_white(tmp_path):
    colour = tuple(int(value) for value in NOISE[2, 5, :3])
    read = COLOUR.read(saved(tmp_path / "colour.png", NOISE[..., :3], transparency=colour))
    expected = planes(NOISE[..., :3])
    expected[:, 2, 5] = 255
    np.testing.assert_array_equal(read, expected)
    read = COLOUR.read(saved(tmp_path / "grey.png", NOISE[..., 0], transparency=int(NOISE[2, 5, 0])))
    np.testing.assert_array_equal(read, planes(np.where(NOISE[..., 0] == NOISE[2, 5, 0], 255, NOISE[..., 0])))


def test_one_bit_is_black_or_white(tmp_path):
    bits = NOISE[..., 0] > 100
    path = saved(tmp_path / "a.png", bits, "1")
    np.testing.assert_array_equal(GREY.read(path), 255 * bits[None])
    np.testing.assert_array_equal(COLOUR.read(path), planes(255 * bits))


def test_16_bits_are_scaled_to_8(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = saved(tmp_path / "a.png", values * 257, "I;16")
    np.testing.assert_array_equal(Shape(1, (16, 16), FITS["crop"]).read(path), values[None])
    np.testing.assert_array_equal(Shape(3, (16, 16), FITS["crop"]).read(path), planes(values))


def test_printers_colours(tmp_path):
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[:, 4:] = (0, 255, 255, 0)  # magenta and yellow, which make red
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.jpg", quality=100)
    red = np.full((8, 8, 3), 255)
    red[:, 4:, 1:] = 0
    np.testing.assert_allclose(COLOUR.read(str(tmp_path / "a.jpg"))[:, :, [0, 7]], planes(red)[:, :, [0, 7]], atol=3)


# What a picture must undergo to be seen as it was taken, in the words of the EXIF standard.
TURNED = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, 1),
}


@pytest.mark.parametrize(("suffix", "tolerance"), [("png", 0), ("webp", 0), ("jpg", 3)])
@pytest.mark.parametrize("orientation", TURNED)
def test_photographs_are_turned_before_they_are_cropped(orientation, suffix, tolerance, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
    path = saved(tmp_path / f"a.{suffix}", BLOCKS, exif=exif, **quality)
    upright = planes(TURNED[orientation](BLOCKS))
    middle = upright[:, :, 8:24] if upright.shape[2] == 32 else upright[:, 8:24]
    np.testing.assert_allclose(Shape(3, (16, 16), FITS["crop"]).read(path), middle, atol=tolerance)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_a_damaged_exif_leaves_the_picture_as_it_is(exif, suffix, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, when it writes such a thing
        path = saved(tmp_path / f"a.{suffix}", np.full((8, 8, 3), 77, np.uint8), exif=exif, lossless=True)
    images, wrong = COLOUR.read_block([path])
    assert not wrong
    assert (images == 77).all()


@pytest.mark.parametrize(("width", "first"), [(20, 6), (13, 2), (9, 0)])
def test_crop_takes_the_middle(width, first, tmp_path):
    wide = np.random.default_rng(width).integers(0, 256, (8, width, 3), np.uint8)
    tall = wide.transpose(1, 0, 2)
    middle = wide[:, first : first + 8]
    np.testing.assert_array_equal(COLOUR.read(saved(tmp_path / "wide.png", wide)), planes(middle))
    np.testing.assert_array_equal(COLOUR.read(saved(tmp_path / "tall.png", tall)), planes(middle).transpose(0, 2, 1))


def test_what_is_cut_off_leaves_no_trace(tmp_path):
    """The middle of this image is white; black beside it must not darken the edges when it is scaled down."""
    pixels = np.zeros((32, 80), np.uint8)
    pixels[:, 24:56] = 255
    assert (COLOUR.read(saved(tmp_path / "a.png", pixels)) == 255).all()


@pytest.mark.parametrize(
    ("size", "part"),
    [((16, 24), np.s_[:, 4:28]), ((16, 8), np.s_[:, 12:20]), ((8, 32), np.s_[4:12]), ((16, 32), np.s_[:])],
)
def test_the_largest_middle_part_of_an_aspect_ratio_is_taken(size, part, tmp_path):
    read = Shape(3, size, FITS["crop"]).read(saved(tmp_path / "a.png", BLOCKS))
    np.testing.assert_array_equal(read, planes(BLOCKS[part]))


def test_a_rectangle_is_scaled_as_a_whole(tmp_path):
    read = Shape(3, (8, 16), FITS["crop"]).read(saved(tmp_path / "a.png", BLOCKS))
    assert read.shape == (3, 8, 16)
    np.testing.assert_allclose(read[:, 1::4, 1::4], planes(BLOCKS)[:, 3::8, 3::8], atol=40)


def test_resize_keeps_both_ends(tmp_path):
    pixels = np.zeros((32, 320), np.uint8)
    pixels[:, 40:-40] = 100
    pixels[:, -40:] = 200
    read = Shape(1, (8, 8), FITS["resize"]).read(saved(tmp_path / "a.png", pixels))
    np.testing.assert_allclose(read[0, :, [0, 7]], np.repeat([[0], [200]], 8, 1), atol=12)
    np.testing.assert_allclose(read[0, :, 2:6], 100, atol=12)
    tall = Shape(1, (8, 8), FITS["resize"]).read(saved(tmp_path / "b.png", pixels.T))
    np.testing.assert_array_equal(tall[0], read[0].T)


def test_fine_patterns_are_averaged_not_picked(tmp_path):
    """Without antialiasing, every fourth pixel of a checkerboard is black or white."""
    board = np.uint8(255) * (np.indices((64, 64)).sum(0) % 2).astype(np.uint8)
    np.testing.assert_allclose(GREY.read(saved(tmp_path / "a.png", board)), 127.5, atol=4)


def test_small_images_are_scaled_up(tmp_path):
    read = GREY.read(saved(tmp_path / "a.png", np.full((3, 4), 9, np.uint8)))
    assert (read == 9).all()


def test_faces_are_the_middle_140_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), np.uint8)
    read = Shape(3, (140, 140), centre_140).read(saved(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(read, planes(pixels[39:179, 19:159]))


def test_faces_too_small_to_crop_are_refused(tmp_path):
    """Files scaled down by someone else, say: a black border around each would be learned."""
    _, wrong = Shape(3, (64, 64), centre_140).read_block([saved(tmp_path / "a.png", NOISE)])
    assert "140" in wrong[0]


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bomb(path: Path) -> None:
    """A file of a few bytes that says it has 900 million pixels."""
    content = bytearray(Path(saved(path, NOISE[..., :3])).read_bytes())
    content[18:26] = struct.pack("<ii", 30_000, 30_000)  # width and height
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "make", "why"),
    [
        ("cut.png", truncated, "truncated"),
        ("cut.jpg", truncated, "truncated"),
        ("cut.bmp", truncated, "truncated"),
        ("text.jpg", lambda path: path.write_text("no image"), "is not an image"),
        ("empty.png", Path.touch, "is not an image"),
        ("gone.png", lambda path: None, "does not exist"),
        ("folder.png", Path.mkdir, "is not a regular file"),
        ("bomb.bmp", bomb, "900000000 pixels"),
    ],
)
def test_what_is_no_whole_image_is_named_with_a_reason(name, make, why, tmp_path):
    make(tmp_path / name)
    good = saved(tmp_path / "good.png", NOISE[..., :3])
    images, wrong = COLOUR.read_block([good, str(tmp_path / name), good])
    assert list(wrong) == [1]
    assert why in wrong[1]
    assert "\n" not in wrong[1]
    np.testing.assert_array_equal(images, np.stack([planes(NOISE[..., :3]), np.zeros((3, 8, 8)), images[0]]))


@pytest.fixture
def many(tmp_path) -> list[str]:
    """600 files, each in a colour of its own; every hundredth is no image."""
    paths = []
    for number in range(600):
        path = tmp_path / f"{number}.bmp"
        colour = np.array([number % 256, number // 256, 7], np.uint8)
        paths.append(saved(path, np.broadcast_to(colour, (4, 4, 3))))
        if number % 100 == 99:
            path.write_text("no image")
    return paths


@pytest.mark.parametrize("workers", [1, 2])
def test_blocks_come_in_order_however_many_decode(workers, many, monkeypatch):
    monkeypatch.setattr(decoding, "BLOCK_IMAGES", 32)  # more blocks than are in flight at a time
    blocks = list(decode(many, Shape(3, (4, 4), FITS["crop"]), workers))
    assert [len(images) for images, _ in blocks] == [32] * 18 + [24]
    wrong = {32 * block + number: why for block, (_, found) in enumerate(blocks) for number, why in found.items()}
    assert wrong == dict.fromkeys(range(99, 600, 100), "is not an image")
    numbers = np.arange(600)
    expected = np.stack([numbers % 256, numbers // 256, np.full(600, 7)], axis=1)
    expected[99::100] = 0
    np.testing.assert_array_equal(
        np.concatenate([images for images, _ in blocks]), expected[..., None, None] + np.zeros((4, 4))
    )


def test_workers_end_when_nobody_reads_on(many, monkeypatch):
    monkeypatch.setattr(decoding, "BLOCK_IMAGES", 32)
    blocks = decode(many, COLOUR, workers=2)
    next(blocks)
    workers = active_children()
    assert len(workers) == 2
    blocks.close()
    assert all(connection.wait([worker.sentinel], 10) for worker in workers)


DECODING = """
import sys
from multiprocessing import active_children
from diffuse.data.decoding import FITS, Shape, decode

if __name__ == "__main__":
    blocks = decode(sys.argv[1:], Shape(3, (8, 8), FITS["crop"]), workers=2)
    next(blocks)
    print(*[child.pid for child in active_children()], flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux can wait for processes of others")
def test_workers_end_when_their_parent_is_killed(many):
    parent = subprocess.Popen(
        [sys.executable, "-c", DECODING, *many],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # multiprocessing regrets what was left behind
        text=True,
    )
    with parent:
        workers = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(workers) == 2
    ended = [bool(select.select([worker], [], [], 10)[0]) for worker in workers]  # readable once it has ended
    for worker, has_ended in zip(workers, ended, strict=True):
        if not has_ended:
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        os.close(worker)
    assert ended == [True, True]
