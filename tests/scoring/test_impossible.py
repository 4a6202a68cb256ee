"""What cannot be scored, because no images can have such features or no network draws with such weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuse.runs.checkpoint import write
from diffuse.runs.checkpoint_files import all_in
from diffuse.runs.drawing import drawing_of
from diffuse.runs.trained import load, load_for
from diffuse.scoring.feature_rows import Rows, read_statistics
from diffuse.scoring.report import Report
from diffuse.system.errors import UserError
from tests.support.commands import TINY, config, diffuse
from tests.support.comparing import read
from tests.support.scoring import FAST, as_folder, normal, smooth, tiles

D = 48
GOOD = np.cov(normal(200, D), rowvar=False)


@pytest.mark.parametrize(
    ("sigma", "why"),
    [
        (-np.eye(D), "negative eigenvalue, -1 "),
        (np.triu(np.ones((D, D))), "not symmetric"),
        (np.full((D, D), np.nan), "NaN or infinite"),
        (GOOD - 0.9 * np.eye(D), "negative eigenvalue"),
    ],
)
def test_a_matrix_that_is_no_covariance_is_refused(tmp_path, sigma, why):
    """By the command: before, FID was -99.6, 141.6 and nan, with exit 0."""
    np.savez(tmp_path / "s.npz", mu=np.zeros(D), sigma=sigma)
    as_folder(tmp_path / "a", smooth(60))
    words = [f"samples={tmp_path / 'a'}", "reference=s.npz", "metrics=[fid]", *tiles(tmp_path), *FAST]
    done = diffuse("eval", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "s.npz does not hold the mean and covariance of anything" in done.stderr
    assert why in done.stderr
    assert len(done.stderr.splitlines()) <= 4


def test_a_mean_that_is_not_finite_is_refused(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.full(D, np.inf), sigma=GOOD)
    with pytest.raises(UserError, match="NaN or infinite"):
        read_statistics(tmp_path / "s.npz")


@pytest.mark.parametrize("rows", [5, 200])
def test_covariances_that_somebody_rounded_are_read(tmp_path, rows):
    """To float32, of fewer images than features too: eigenvalues of zero come out a little below."""
    x = 100 * normal(rows, D)
    np.savez(tmp_path / "s.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False).astype(np.float32))
    assert read_statistics(tmp_path / "s.npz").sigma.shape == (D, D)


@pytest.mark.parametrize("kind", ["statistics", "radii"])
def test_what_was_changed_in_the_cache_is_computed_again(tmp_path, kind):
    rows = Rows(tmp_path / "rows", {"images": "a"})
    rows.extend(20, ["features"], lambda first: iter([{"features": normal(20, 5)}]))
    before = rows.statistics("features").sigma if kind == "statistics" else rows.radii("features", 3)
    (kept,) = (tmp_path / "rows").glob(f"*{kind}*")
    if kind == "statistics":
        np.savez(kept, mu=np.full(5, 1e3), sigma=np.eye(5))
    else:
        np.save(kept, before + 1)
    again = Rows(tmp_path / "rows", {"images": "a"})
    found = again.statistics("features").sigma if kind == "statistics" else again.radii("features", 3)
    np.testing.assert_array_equal(found, before)


def test_weights_that_are_not_finite_neither_draw_nor_score(tiny_run, tmp_path):
    shutil.copytree(tiny_run / "checkpoints", tmp_path / "r" / "checkpoints")
    path = all_in(tmp_path / "r" / "checkpoints")[-1]
    content = read(path)
    content = {**content, "ema": {name: weight.clone() for name, weight in content["ema"].items()}}
    content["ema"]["head.bias"][0] = torch.nan
    write(path, content.pop("step"), {key: value for key, value in content.items() if key not in ("format", "program")})
    for command in (["sample", "n=2", "sampler.steps=2"], ["eval", "n=2", "metrics=[bound]", "levels=2"]):
        done = diffuse(*command, "ckpt=r", "device=cpu", cwd=tmp_path)
        assert done.returncode == 1
        assert "holds weights that are NaN or infinite (head.bias)" in done.stderr
    with pytest.raises(UserError, match="NaN or infinite"):
        load(str(tmp_path / "r"))
    assert [folder.name for folder in (tmp_path / "r").iterdir()] == ["checkpoints"]


def test_images_that_are_not_finite_are_refused_by_their_number(tiny_run):
    typed = config("sample", f"ckpt={tiny_run}", *FAST)
    drawing, drawn = drawing_of(load_for(typed), typed), torch.zeros(3, 1, 2, 2)
    assert drawing.fetched(drawn, range(10, 13))().unique().tolist() == [128]
    drawn[1, 0, 0, 1] = torch.inf
    with pytest.raises(UserError, match=r"1 of 3 images are NaN or infinite \(the first is number 11\)"):
        drawing.fetched(drawn, range(10, 13))()


def test_a_score_that_is_not_finite_is_not_written(tmp_path):
    report = Report(tmp_path, config("eval", *TINY[:0], "ckpt=x"), {})
    with pytest.raises(UserError, match="fid is nan"):
        report.score("sample_scores", "fid", lambda: {"fid": {"value": float("nan")}}, lambda *_: "")
    assert json.loads((Path(tmp_path) / "eval.json").read_text())["values"] == {}
