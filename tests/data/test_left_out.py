"""What a folder of images holds that is not trained on: counted and named."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffuse.data.own_images import image_files
from tests.support.making import photo, save, save_all


def test_files_that_are_no_images_of_ours_are_counted_and_named(tmp_path, caplog):
    save_all(tmp_path, "a.png", "b/c.png")
    for name in ("z.gif", "b/y.gif", ".hidden", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert image_files(tmp_path) == ["a.png", "b/c.png"]
    (line,) = caplog.messages
    assert "3 left out (not jpg, png, webp or bmp): b/y.gif, notes.txt, z.gif" in line


def test_only_the_first_are_named(tmp_path, caplog):
    for number in range(9):
        (tmp_path / f"{number}.gif").touch()
    assert image_files(tmp_path) == []
    assert caplog.messages[0].endswith("9 left out (not jpg, png, webp or bmp): "
                                       "0.gif, 1.gif, 2.gif, 3.gif, 4.gif, ...")  # fmt: skip


def test_nothing_is_said_of_a_folder_of_images(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save(tmp_path / "a.png", photo(1))
    assert image_files(tmp_path) == ["a.png"]
    assert caplog.messages == []


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything, so it becomes somebody else meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_named(caplog):
    with tempfile.TemporaryDirectory() as place:  # outside of pytest's, which is closed to others
        folder = Path(place)
        save_all(folder, "a.png", "closed/b.png")
        folder.chmod(0o755)
        (folder / "closed").chmod(0)
        with as_nobody():
            found = image_files(folder)
        (folder / "closed").chmod(0o700)
    assert found == ["a.png"]
    assert caplog.messages == [f"{folder}: 1 left out (a folder that may not be read): closed"]
