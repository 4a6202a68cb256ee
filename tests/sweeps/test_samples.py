"""Sweeps over samplers: one table with cost and distance, one picture, a row a sampler."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffuse.sweeps.picture import by_sampler
from diffuse.sweeps.record import DONE, FAILED, Record
from diffuse.sweeps.samples import with_distances
from tests.support.commands import FAST, diffuse
from tests.support.sweeps import column


def job(number: int, evaluations: float, **varied: str) -> Record:
    keys = {key.replace("_", "."): value for key, value in varied.items()}
    values = {"evaluations": evaluations}
    return Record(number, f"{number}_x", "sample", "", [], keys, "", status=DONE, values=values)


def drawn(sweep: Path, record: Record, images: np.ndarray, order: int | None = 1) -> None:
    (sweep / record.folder).mkdir()
    (sweep / record.folder / "samples.json").write_text(json.dumps({"order": order}))
    np.savez(sweep / record.folder / "samples.npz", images)


def test_distances_are_from_the_finest_of_those_with_the_same_noise(tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, 100, 5, 5, 1)).astype(np.uint8)
    cases = [("0", "ddim", 5), ("0", "heun", 99), ("0", "lms", 20), ("1", "ddim", 50)]
    jobs = [job(place, cost, seed=seed, sampler=name) for place, (seed, name, cost) in enumerate(cases)]
    for record, content in zip(jobs, images, strict=True):
        drawn(tmp_path, record, content)
    found = [record.values.get("distance") for record in with_distances(tmp_path, jobs)]
    pixels = images[:, :64].astype(float) / 127.5 - 1
    expected = [np.sqrt(np.mean((pixels[place] - pixels[1]) ** 2)) for place in (0, 2)]
    assert found == [pytest.approx(expected[0]), 0, pytest.approx(expected[1]), None]


def test_the_finest_follows_the_flow_and_has_the_highest_order(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5, 1)).astype(np.uint8)
    names, costs, orders = ("ddpm", "ddim", "unipc", "heun"), (99, 50, 50, 19), (None, 1, 3, 2)
    jobs = [job(place, cost, sampler=name) for place, (name, cost) in enumerate(zip(names, costs, strict=True))]
    for record, content, order in zip(jobs, images, orders, strict=True):
        drawn(tmp_path, record, content, order)
    found = [record.values["distance"] for record in with_distances(tmp_path, jobs)]
    assert [distance == 0 for distance in found] == [False, False, True, False]
    for folder in tmp_path.iterdir():
        (folder / "samples.json").write_text('{"order": null}')
    assert not any("distance" in record.values for record in with_distances(tmp_path, jobs))


@pytest.mark.parametrize("what", ["missing", "damaged", "another shape", "failed", "floats"])
def test_images_that_cannot_be_compared_have_no_distance(tmp_path, what):
    jobs = [job(0, 5, sampler="ddim"), job(1, 99, sampler="heun")]
    drawn(tmp_path, jobs[1], np.zeros((4, 5, 5, 1), np.uint8))
    if what == "damaged":
        (tmp_path / "0_x").mkdir()
        (tmp_path / "0_x" / "samples.npz").write_bytes(b"no archive")
    elif what == "another shape":
        drawn(tmp_path, jobs[0], np.zeros((4, 6, 6, 1), np.uint8))
    elif what == "failed":
        drawn(tmp_path, jobs[0], np.zeros((4, 5, 5, 1), np.uint8))
        jobs[0] = replace(jobs[0], status=FAILED)
    elif what == "floats":  # of data without a range: as they are
        drawn(tmp_path, jobs[0], np.full((4, 5, 5, 1), 0.25, np.float32))
        drawn(tmp_path, job(2, 1), np.zeros(1))
    found = with_distances(tmp_path, jobs)[0].values.get("distance")
    assert found == (1.25 if what == "floats" else None)


def test_a_row_of_the_picture_is_a_sampler_in_the_order_of_its_evaluations():
    cases = [(20, "unipc", "20"), (5, "unipc", "5"), (9, "heun", "5"), (39, "heun", "20")]
    jobs = [job(place, cost, sampler=name, sampler_steps=steps) for place, (cost, name, steps) in enumerate(cases)]
    ordered, wide = by_sampler([(record, Path("x")) for record in jobs])
    assert wide == 2
    assert [record.number for record, _ in ordered] == [1, 0, 2, 3]
    assert by_sampler([(record, Path("x")) for record in jobs[:3]]) is None  # rows of two and one
    assert by_sampler([(record, Path("x")) for record in jobs[1:3]]) is None  # one each


def test_from_outside(tiny_run, tmp_path):
    words = [f"ckpt={tiny_run}", "name=s", "n=3", "sampler=ddim,heun", "sampler.steps=2,4", "sampler.spacing=uniform"]
    done = diffuse("sample", "-m", *words, *FAST, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "outputs" / "s"
    assert column(sweep, "evaluations") == ["2.0", "4.0", "3.0", "7.0"]
    assert [float(cell) > 0 for cell in column(sweep, "s_per_image")] == [True] * 4
    assert [float(cell) > 0 for cell in column(sweep, "distance")] == [True, True, True, False]
    assert (sweep / "sweep.png").stat().st_size > 5000
    facts = [json.loads(path.read_text()) for path in sorted(sweep.glob("*/samples.json"))]
    assert [(fact["evaluations"], fact["network_calls"]) for fact in facts] == [(2, 2), (4, 4), (3, 3), (7, 7)]
    again = diffuse("sample", "-m", *words, *FAST, cwd=tmp_path)
    assert again.returncode == 0
    assert column(sweep, "evaluations") == ["2.0", "4.0", "3.0", "7.0"]


def test_scores_are_drawn_against_evaluations(tiny_run, tmp_path):
    words = [
        f"ckpt={tiny_run}",
        "name=e",
        "n=16",
        "metrics=[precision_recall]",
        "features=classifier",
        "sampler=ddim,heun",
    ]
    done = diffuse("eval", "-m", *words, "sampler.steps=2,3", *FAST, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert column(tmp_path / "outputs" / "e", "evaluations") == ["2.0", "3.0", "3.0", "5.0"]
    assert (tmp_path / "outputs" / "e" / "sweep.png").stat().st_size > 5000
