"""Rows of a sweep's table: told apart by the configs of the runs that were scored, and combined over seeds."""

import statistics
from dataclasses import replace
from typing import Any

import pytest

from diffuse.options.schema import plain
from diffuse.sweeps.record import Record
from diffuse.sweeps.rows import Row, best, by_configs, over_seeds
from diffuse.sweeps.table import as_markdown, as_text
from tests.support.commands import TINY, config, diffuse
from tests.support.sweeps import column


def job(number: int, varied: dict[str, str], values: dict[str, float], trained: dict[str, Any] | None = None) -> Record:
    rest = {"folder": f"{number}_x", "command": "eval", "typed": "diffuse eval -m", "overrides": [], "given": "now"}
    return Record(number=number, varied=varied, values=values, status="done", trained=trained or {}, **rest)


def seeds(fids: dict[str, list[float]]) -> list[Record]:
    """A job for each schedule and seed, with its FID."""
    found = [(name, str(seed), fid) for name, values in fids.items() for seed, fid in enumerate(values)]
    return [job(n, {"schedule": name, "seed": seed}, {"fid": fid}) for n, (name, seed, fid) in enumerate(found)]


def best_line(fids: dict[str, list[float]]) -> str:
    return next((line for line in as_text(seeds(fids), 160).splitlines() if line.startswith("best")), "")


def test_seeds_are_combined_to_mean_and_standard_deviation():
    rows = over_seeds(seeds({"linear": [3.0, 3.5, 4.0], "cosine": [1.0, 1.5, 1.1]}))
    assert [row.varied("seed") for row in rows] == ["0, 1, 2"] * 2
    assert rows[1].mean("fid") == pytest.approx(1.2)
    assert rows[1].deviation("fid") == pytest.approx(statistics.stdev([1.0, 1.5, 1.1]))
    text = as_text(seeds({"linear": [3.0, 3.5, 4.0], "cosine": [1.0, 1.5, 1.1]}), 160)
    assert "3, 4, 5  cosine    0, 1, 2  1.20 +- 0.26" in text
    assert text.endswith("best: fid 1.20 +- 0.26 (jobs 3, 4, 5)")
    assert "**1.20 +- 0.26**" in as_markdown(seeds({"linear": [3.0, 3.5, 4.0], "cosine": [1.0, 1.5, 1.1]}), None)


def test_there_is_no_best_inside_the_spread():
    """The difference of the two best means against 2 sqrt(0.1^2 / 3 + 0.1^2 / 3) = 0.163."""
    linear = [1.0, 1.2, 1.1]
    assert best_line({"linear": linear, "cosine": [1.15, 1.35, 1.25]}) == ""
    assert best_line({"linear": linear, "cosine": [1.2, 1.4, 1.3]}) == "best: fid 1.10 +- 0.10 (jobs 0, 1, 2)"
    assert best_line({"linear": linear * 9, "cosine": [1.15, 1.35, 1.25] * 9}).startswith("best: fid 1.1")
    assert best_line({"linear": linear}) == ""
    assert best_line({"linear": linear, "cosine": [0.1]}) == ""  # of one seed


def test_a_seed_counts_once_where_a_sweep_was_given_again_with_more():
    """Its later jobs have other numbers, and so other folders; the newest result of a seed counts."""
    first, later = seeds({"linear": [1.0, 2.0]}), seeds({"linear": [5.0, 2.0, 3.0]})
    later = [replace(job, number=job.number + 2, began="9999") for job in later]
    (row,) = over_seeds([*first, *later])
    assert (row.mean("fid"), [job.number for job in row.jobs]) == (pytest.approx(10 / 3), [2, 3, 4])


def test_equal_options_without_seeds_are_not_combined():
    jobs = [job(n, {"optim.lr": lr}, {"fid": float(n)}) for n, lr in enumerate("1221")]
    assert over_seeds(jobs) == []


def test_without_seeds_every_job_is_its_own_row():
    jobs = [job(n, {"schedule": name}, {"fid": 2.0 - n}) for n, name in enumerate(("linear", "cosine"))]
    assert over_seeds(jobs) == []
    assert best([Row([one]) for one in jobs], "fid").jobs == [jobs[1]]


def test_a_failed_seed_is_left_out_of_the_mean():
    jobs = [*seeds({"linear": [3.0, 4.0], "cosine": [1.0]}), job(3, {"schedule": "cosine", "seed": "1"}, {})]
    assert [(row.mean("fid"), row.deviation("fid")) for row in over_seeds(jobs)] == [
        (3.5, pytest.approx(0.5**0.5)),
        (1.0, None),
    ]


def trained(*words: str) -> dict[str, Any]:
    return plain(config("train", "schedule=linear", *words))


def test_runs_are_told_apart_by_their_configs():
    runs = {"a": ["seed=1"], "b": ["schedule=cosine"], "c": ["schedule=cosine", "seed=1"]}
    jobs = [
        job(n, {"ckpt": f"outputs/sw/{name}", "sampler.steps": "5"}, {}, trained(*words))
        for n, (name, words) in enumerate(runs.items())
    ]
    assert [row.varied for row in by_configs(jobs)] == [
        {"schedule": "linear", "seed": "1", "sampler.steps": "5"},
        {"schedule": "cosine", "seed": "0", "sampler.steps": "5"},
        {"schedule": "cosine", "seed": "1", "sampler.steps": "5"},
    ]


def test_the_trainings_seed_is_not_that_of_the_samples():
    jobs = [
        job(n, {"ckpt": str(run), "seed": str(n % 2)}, {"fid": n}, trained(f"seed={run}"))
        for n, run in enumerate([0, 0, 1, 1])
    ]
    assert by_configs(jobs)[2].varied == {"trained.seed": "1", "seed": "0"}
    assert [row.jobs[0].number for row in over_seeds(by_configs(jobs))] == [0]


def test_checkpoints_of_one_run_are_told_apart_by_the_ends_of_their_paths():
    paths = [f"outputs/sw/a/checkpoints/step_0000000{step}.pt" for step in (1, 2)]
    jobs = [job(n, {"ckpt": path}, {}, trained()) for n, path in enumerate(paths)]
    assert [row.varied for row in by_configs(jobs)] == [{"ckpt": f"step_0000000{step}.pt"} for step in (1, 2)]


def test_absolute_and_relative_paths_are_told_apart(tmp_path):
    jobs = [job(n, {"ckpt": path}, {}, trained()) for n, path in enumerate([f"{tmp_path}/a/x.pt", "outputs/b"])]
    assert len({row.varied["ckpt"] for row in by_configs(jobs)}) == 2


def test_without_a_config_the_path_stays():
    jobs = [job(0, {"ckpt": "a.pt"}, {}), job(1, {"ckpt": "outputs/b"}, {}, trained())]
    assert by_configs(jobs) == jobs


def test_a_sweep_is_scored_as_one(tmp_path):
    """From outside: every run of a sweep, by its folder, by a pattern, and by its best checkpoint."""
    words = [*TINY, "-m", "name=sw", "schedule=linear,cosine", "eval.every=6", "eval.n=20", "eval.metrics=[fid]"]
    done = diffuse("train", *words, "checkpoint.every=6", "images.every=6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scoring = ["n=20", "metrics=[fid]", "features=classifier", "sampler.steps=2", "device=cpu"]
    for name, ckpt in (("folder", "sw"), ("pattern", "outputs/sw/*"), ("best", "sw@best")):
        done = diffuse("eval", "-m", f"name={name}", f"ckpt={ckpt}", *scoring, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert column(tmp_path / "outputs" / name, "schedule") == ["linear", "cosine"]
        assert column(tmp_path / "outputs" / name, "status") == ["done", "done"]
        assert "job  schedule  fid_classifier" in done.stdout


def test_a_sweep_needs_the_flag_for_several_and_a_pattern_a_match(tmp_path, tiny_run):
    for number in (2, 10):
        (tmp_path / "outputs" / "sw" / f"{number}_x").mkdir(parents=True)
        (tmp_path / "outputs" / "sw" / f"{number}_x" / "config.yaml").touch()
    (tmp_path / "outputs" / "sw" / "multirun.yaml").touch()
    done = diffuse("eval", "ckpt=outputs/sw", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: ckpt=outputs/sw stands for 2 runs: add -m for all of them, or choose one\n"
    done = diffuse("eval", "ckpt=sw/none*", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: ckpt=sw/none* matches no run and no checkpoint\n")
