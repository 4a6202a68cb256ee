"""Files that are whole or not there."""

import hashlib

import pytest

from diffuse.system.files import atomic_path, link_atomic, make_new_folder, sha256, write_atomic


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, lambda file: file.write("first"))

    def fail(file) -> None:
        file.write("half of the sec")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomic(path, fail)
    assert path.read_text() == "first"
    assert names(tmp_path) == ["a.txt"]


def test_nothing_is_visible_before_it_is_complete(tmp_path):
    with atomic_path(tmp_path / "new" / "b.bin") as beside:
        beside.write_bytes(b"x")
        assert not (tmp_path / "new" / "b.bin").exists()
    assert names(tmp_path / "new") == ["b.bin"]


def test_a_link_is_replaced_in_one_move(tmp_path):
    for target in ("one", "two"):
        (tmp_path / target).write_text(target)
        link_atomic(tmp_path / "last", tmp_path / target)
        assert (tmp_path / "last").read_text() == target
    assert names(tmp_path) == ["last", "one", "two"]


def test_two_runs_of_one_second_get_folders_of_their_own(tmp_path):
    made = [make_new_folder(tmp_path / "runs" / "now").name for _ in range(3)]
    assert made == ["now", "now-2", "now-3"]


def test_sha256_is_the_files(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "c").write_bytes(content)
    assert sha256(tmp_path / "c") == hashlib.sha256(content).hexdigest()
