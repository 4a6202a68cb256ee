"""Command lines and checkpoints that nobody meant to write: refused in words, without a traceback or a hang."""

import hashlib
import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from diffuse.cli.app import run_command
from diffuse.commands import train
from diffuse.options.schema import SCHEMAS, flat, groups, plain, stored_config
from diffuse.runs.checkpoint import write
from diffuse.runs.record import write_record
from diffuse.runs.trained import load
from diffuse.system.errors import UserError
from tests.support.commands import TINY, config, output
from tests.support.comparing import read

LINES = 240
VALUES = [
    "", "null", "0", "1", "-1", "2", "3", "8", "64", "1.5", "1e-3", "-0.0", "1e400", "nan", "inf", "-inf", "true",
    "[]", "[1]", "[1,2]", "[[1],[2]]", "{a:1}", "{}", "'", '"', "${seed}", "${nowhere}", "${oc.env:NOWHERE}", "???",
    "a,b", "1,2", "../x", "/", ".", "é", "\x00", "%s", "=", "range(3)", "choice(1,2)", "999999999999999999999", "0x10",
    "abc", "a b", "1_0", "os.system", "linear", "cosine", "ddpm", "tiny", "cpu", "digits", "gaussian", "folder",
]  # fmt: skip
FLAGS = [
    "-m",
    "--cfg",
    "--cfg job",
    "--help",
    "-c",
    "--info",
    "--resolve",
    "-cd",
    "-cd nowhere",
    "--",
    "-",
    "-x",
    "-cn x",
]
GROUPS = tuple(groups("train"))
# What keeps a line that is in order short, and its memory small.
SMALL = [*TINY, "steps=1", "dataset=digits", "max_hours=0.0005"]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder of its own, and the logger and Hydra as they were when the test is over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["diffuse"])
    monkeypatch.setattr(logging.getLogger("diffuse"), "propagate", True)
    handlers = list(logging.getLogger("diffuse").handlers)
    yield tmp_path
    logging.getLogger("diffuse").handlers[:] = handlers
    GlobalHydra.instance().clear()


def mangled(word: str, random: np.random.Generator) -> str:
    """The word with a letter lost, doubled, swapped or changed."""
    if not word:
        return word
    at = int(random.integers(len(word)))
    kind = random.integers(4)
    if kind == 0:
        return word[:at] + word[at + 1 :]
    if kind == 1:
        return word[:at] + word[at] + word[at:]
    if kind == 2:
        return word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :]
    return word[:at] + str(random.choice(list("=.,[]{}$+~-x0 '"))) + word[at + 1 :]


def a_line(keys: list[str], random: np.random.Generator) -> list[str]:
    """One to three words that look more or less like overrides and flags."""
    words = []
    for _ in range(random.integers(1, 4)):
        key, value = str(random.choice([*keys, *GROUPS, "nonsense", ""])), str(random.choice(VALUES))
        word = str(random.choice(["", "", "", "", "+", "++", "~"])) + f"{key}={value}"
        if random.random() < 0.3:
            word = mangled(word, random)
        words += str(random.choice(FLAGS)).split() if random.random() < 0.1 else [word]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("command", SCHEMAS)
def test_no_command_line_ends_in_a_traceback(command, alone, tiny_run, capsys):
    random = np.random.default_rng(len(command))
    required = SMALL if command == "train" else [f"ckpt={tiny_run}", "n=2", "device=cpu", "name=x"]
    keys = sorted(flat(plain(config(command, *required))))
    for number in range(LINES // len(SCHEMAS) + 1):
        words = a_line(keys, random)
        base = [word for word in required if not word.startswith("name=")] + [f"name=fuzz{number}"]
        code = run_command(command, [*base, *words])
        said = capsys.readouterr()
        assert code in (0, 1, 2), (words, code)
        assert "Traceback" not in said.err + said.out, (words, said.err)
        if code:
            complaint = [line for line in said.err.splitlines() if line.startswith("error:")]
            assert complaint, (words, said)


def damaged(whole: bytes, random: np.random.Generator) -> bytes:
    """The file with bytes changed, cut out, doubled, zeroed or added."""
    at, length = int(random.integers(len(whole))), int(random.integers(1, 2000))
    kind = random.integers(6)
    if kind == 0:
        changed = bytearray(whole)
        for place in random.integers(0, len(whole), 8):
            changed[place] = random.integers(256)
        return bytes(changed)
    return [
        whole[:at],
        whole[:at] + whole[at + length :],
        whole[:at] + whole[at : at + length] + whole[at:],
        whole[:at] + bytes(length) + whole[at + length :],
        whole + random.bytes(length),
    ][kind - 1]


def resealed(content: bytes) -> bytes:
    """With a seal that fits: what a program could write that means harm, or our own with a mistake."""
    body = content[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()


@pytest.mark.parametrize("seal", [False, True], ids=["as damage leaves it", "with a fitting seal"])
def test_a_damaged_checkpoint_never_ends_in_a_traceback(tiny_run, tmp_path, seal):
    """A hundred of each; one with a fitting seal may be readable, where the damage is in the weights."""
    whole = (tiny_run / "checkpoints" / "last.pt").read_bytes()
    random = np.random.default_rng(int(seal))
    path = tmp_path / "damaged.pt"
    refused = 0
    for _ in range(100):
        content = damaged(whole, random)
        path.write_bytes(resealed(content) if seal else content)
        try:
            load(str(path))
        except UserError as error:
            assert len(str(error).splitlines()) <= 4
            refused += 1
    assert refused >= (60 if seal else 99)


def places(content, where=()):
    """Every place in nested dictionaries and lists, as a tuple of keys."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield (*where, key)
        yield from places(value, (*where, key))


def replaced(content, place, value):
    if not place:
        return value
    copy = content.copy()
    copy[place[0]] = replaced(content[place[0]], place[1:], value)
    return copy


def test_a_checkpoint_whose_content_is_wrong_never_ends_in_a_traceback(tiny_run, alone):
    """Any value in it replaced by something else, and read by both who read checkpoints: sampling and resuming."""
    content = read(tiny_run / "checkpoints" / "last.pt")
    random = np.random.default_rng(0)
    everywhere = list(places(content))
    shutil.copytree(tiny_run, "outputs/x")
    typed = replace(stored_config(content["config"]), resume="outputs/x", steps=31)
    typed.optim.decay = "none"
    write_record(Path("outputs/x"), replace(typed, steps=30, resume=None))
    path = Path("outputs/x/checkpoints/step_00000030.pt")
    for _ in range(30):
        place = everywhere[int(random.integers(len(everywhere)))]
        value = [None, 0, -1, "x", [], {}, torch.zeros(2), float("nan"), 10**12, [["a"]]][int(random.integers(10))]
        write(path, 30, replaced(content, place, value))
        for use in (partial(load, str(path)), partial(train.run, typed, output())):
            try:
                use()
            except UserError as error:
                assert len(str(error).splitlines()) <= 4, (place, value)
        for later in Path("outputs/x/checkpoints").glob("step_00000031.pt"):
            later.unlink()
