"""Every command of the README and docs/ composes, examples run, and docs/keys.md is what would be written today."""

import re

import pytest

from scripts import key_reference
from scripts.run_pages import STAND_INS, Line, check, files_of, jobs, lines_of, pages, small

LINES = [line for page in pages() for line in lines_of(page)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_command_of_a_page_composes_and_is_checked(page, tmp_path):
    for name, content in files_of(page).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    for line in lines_of(page):
        check(line, tmp_path)


def test_the_commands_of_pages_are_found():
    assert {line.command for line in LINES} >= {"train", "sample", "eval"}
    assert len(LINES) > 50
    placeholders = [line for line in LINES for word in line.words if "..." in word]
    assert not placeholders, "words that stand for a reader's own need a row in STAND_INS"


def test_stand_ins_are_in_use():
    """A row of the table that no page needs any more is taken out."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    assert [word for word in STAND_INS if word not in text] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("    diffuse train name=a   # the run's comment", ["train", "name=a"]),
        ("    diffuse train name=a \\\n        steps=7", ["train", "name=a", "steps=7"]),
        ("```\nA=1 diffuse sample ckpt=a 'n=7'\n```", ["sample", "ckpt=a", "n=7"]),
        ("`diffuse train` in a sentence\ndiffuse train in another", None),
        ("    time diffuse train", None),
    ],
)
def test_lines_are_read_as_a_shell_reads_them(tmp_path, text, words):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert [line.words for line in lines_of(page)] == ([words] if words else [])


def test_every_word_of_a_sweep_comes_up_in_a_job():
    line = Line("page", 1, {}, ["train", "-m", "schedule=linear,cosine,vp", "unet=tiny,small", "seed=0,1,2,3"])
    assert jobs(line) == [
        ["schedule=linear", "unet=tiny", "seed=0"],
        ["schedule=cosine", "unet=small", "seed=0"],
        ["schedule=vp", "unet=small", "seed=0"],
    ]


def test_lines_are_made_small_and_stay_the_sweeps_that_they_are():
    line = Line("page", 1, {}, ["eval", "-m", "ckpt=a", "n=250,500", "seed=0,1", "metrics=[fid]"])
    words = small(line)
    assert words[:6] == ["eval", "-m", "ckpt=a", "n=20,21", "seed=0,1", "metrics=[fid]"]
    assert "features=classifier" in words
    assert small(Line("page", 1, {}, ["train", "resume=a"])) == ["train", "resume=a"]


def test_examples_of_python_run(tmp_path, tiny_run, monkeypatch):
    """Those of docs/; the README's has its own test."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "first").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    for page in pages()[1:]:
        for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            exec(example, {})
    assert (tmp_path / "drawn.png").exists()


def test_the_page_of_keys_is_up_to_date():
    key_reference.check()
