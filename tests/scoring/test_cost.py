"""What takes long is said before it begins."""

from diffuse.data.datasets import digits
from diffuse.options.build import build_with
from diffuse.scoring.imagesets import open_split
from diffuse.scoring.sample_scores import cached_features, cost_of_real
from diffuse.system import progress
from diffuse.system.device import Device
from tests.support.scoring import score, tiles


def test_a_long_evaluation_says_so_before_it_begins(tiny_run, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress, "WORTH_SAYING", 0.0)
    caplog.set_level("INFO", logger="diffuse")
    words = [f"ckpt={tiny_run}", "n=300", "sampler.steps=2", "metrics=[fid]", f"data_dir={tmp_path}", *tiles(tmp_path)]
    score("name=cost", *words)
    said = [record.message for record in caplog.records]
    places = {word: place for place, line in reversed([*enumerate(said)]) for word in [line.split()[0]]}
    assert places["300"] < places["about"] < places["fid_tiles"]


def test_costs_are_added_and_short_ones_left_out(caplog):
    caplog.set_level("INFO", logger="diffuse")
    progress.log_cost({"drawing 9 images": 7200.0, "their features": 0.2, "features of 60,000 images": 3600.0})
    progress.log_cost({"drawing": 59.0})
    progress.log_cost({"drawing": 61.0})
    assert [record.message for record in caplog.records] == [
        "about 3.0 h from here: drawing 9 images 2.0 h, features of 60,000 images 60 min",
        "about 61 s from here",
    ]


def test_features_that_are_kept_cost_nothing(tiny_run, tmp_path):
    tiles(tmp_path)
    node = {"_target_": "torchscript", "path": str(tmp_path / "tiles.pt"), "size": None}
    features = build_with(node, "features", (), device=Device("cpu"), data=None, data_dir=tmp_path)
    real = open_split(digits().kind, "train", digits().train)
    assert (
        cost_of_real(real, features, ["features"], tmp_path)[
            "features of 1,438 images of digits:train (kept afterwards)"
        ]
        > 0
    )
    cached_features(real, features, ["features"], tmp_path)
    assert cost_of_real(real, features, ["features"], tmp_path) == {}
