"""Many images: a sampling that is killed goes on to the same bits, and its memory does not grow with n."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuse.commands import sample
from diffuse.scoring.feature_rows import Rows
from diffuse.system.errors import UserError
from tests.support.commands import config, diffuse, output
from tests.support.processes import until

WORDS = ["device=cpu", "device.precision=float32", "sampler=ddim", "sampler.steps=4", "batch_size=10"]
HEADER, IMAGE = 128, 64  # bytes: of the array's header, and of an image of 8 x 8


def sampled(run: Path, name: str, *words: str) -> np.ndarray:
    sample.run(config("sample", f"ckpt={run}", f"name={name}", *WORDS, *words), output())
    return np.load(run / "samples" / name / "samples.npz")["arr_0"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


@pytest.mark.parametrize("how", ["killed", "killed in an image", "killed after the last image", "interrupted"])
def test_a_sampling_that_is_ended_goes_on_after_the_last_whole_image(tiny_run, tmp_path, how):
    n, name = 40 if "last" in how else 2000, how.replace(" ", "-")
    words = [f"n={n}", "save=[npz,png]"]
    folder = tiny_run / "samples" / name
    drawn = folder / "unfinished" / "images.npy"
    line = [sys.executable, "-m", "diffuse", "sample", f"ckpt={tiny_run}", f"name={name}", *WORDS, *words]
    enough = HEADER + (40 if "last" in how else 50) * IMAGE
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        while not (drawn.exists() and drawn.stat().st_size >= enough) and process.poll() is None:
            until(process, 0.002)
        process.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    if how == "interrupted":
        assert process.returncode == 130
        assert re.search(rf"stopped, \d+ of 2,000 images are drawn; continue with: diffuse sample .* name={name}", said)
    if how == "killed in an image":
        content = drawn.read_bytes()
        assert HEADER + 10 * IMAGE < len(content) < HEADER + n * IMAGE
        drawn.write_bytes(content[: HEADER + 37 * IMAGE + 5])
    found = sampled(tiny_run, name, *words)
    np.testing.assert_array_equal(found, sampled(tiny_run, f"whole-{n}", *words))
    assert files(folder) == files(tiny_run / "samples" / f"whole-{n}")
    assert len(files(folder)) == n
    facts = json.loads((folder / "samples.json").read_text())
    assert (facts["n"], facts["evaluations"]) == (n, 4)
    assert not (folder / "unfinished").exists()


def keep_black(folder: Path, made_from: dict) -> None:
    """Twenty black images, as if drawn so far."""
    black = np.zeros((20, 8, 8, 1), np.uint8)
    Rows(folder / "unfinished", made_from).extend(20, ["images"], lambda first: iter([{"images": black}]))


def test_other_options_begin_again(tiny_run):
    """Images drawn so far, and files of the end, are of other options: of no use, and not left beside the new ones."""
    folder = tiny_run / "samples" / "changed"
    sampled(tiny_run, "changed", "n=30")
    facts = json.loads((folder / "samples.json").read_text())
    made_from = {key: value for key, value in facts.items() if key not in sample.MAY_DIFFER}
    Rows(folder / "unfinished", made_from).extend(
        20, ["images"], lambda first: iter([{"images": np.zeros((20, 8, 8, 1), np.uint8)}])
    )
    (folder / "samples.json").unlink()
    black = sampled(tiny_run, "changed", "n=30")  # these options go on
    assert not black[:20].any()
    (folder / "samples.json").unlink()
    Rows(folder / "unfinished", made_from).extend(
        20, ["images"], lambda first: iter([{"images": np.zeros((20, 8, 8, 1), np.uint8)}])
    )
    words = ["n=30", "seed=4", "save=[png]", "trajectory=false"]
    sample.run(config("sample", f"ckpt={tiny_run}", "name=changed", *WORDS, *words), output())
    assert {path.name for path in folder.iterdir()} >= {"images", "samples.json"}
    assert not {path.name for path in folder.iterdir()} & {
        "samples.npz",
        "trajectory.png",
        "trajectory.gif",
        "unfinished",
    }
    first = np.asarray(Image.open(folder / "images" / "00000.png"))
    np.testing.assert_array_equal(first, sampled(tiny_run, "seed-4", "n=1", "seed=4")[0, :, :, 0])


@pytest.mark.parametrize(
    ("words", "present"),
    [
        (["n=3"], {"images", "samples.npz"}),
        (["n=3", "save=[npz]"], {"samples.npz"}),
        (["n=3", "save=[png]"], {"images"}),
        (["n=1001", "sampler.steps=1", "batch_size=512"], {"samples.npz"}),
    ],
)
def test_what_is_saved(tiny_run, words, present):
    name = f"saved-{len(words)}-{words[0]}-{words[-1]}".replace("=", "-").replace("[", "").replace("]", "")
    sample.run(config("sample", f"ckpt={tiny_run}", f"name={name}", *WORDS, *words), output())
    made = {path.name for path in (tiny_run / "samples" / name).iterdir()}
    always = {".hydra", ".lock", "grid.png", "sample.log", "samples.json"}
    assert made - always - {"trajectory.png", "trajectory.gif"} == present
    with pytest.raises(UserError, match=r"differs in save \(was "):
        sample.run(config("sample", f"ckpt={tiny_run}", f"name={name}", *WORDS, *words, "save=[png,npz,png]"), output())


def test_an_unknown_kind_of_file_is_refused(tiny_run, tmp_path):
    done = diffuse("sample", f"ckpt={tiny_run}", "n=2", "save=[jpg]", cwd=tmp_path)
    assert done.returncode == 2
    assert "save must be one of png, npz, not 'jpg'" in done.stderr
