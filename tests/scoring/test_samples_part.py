"""`diffuse eval` of samples: from a checkpoint and from anywhere, with what the numbers depend on."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from diffuse.commands import sample
from diffuse.commands.eval import refuse_keys_of_drawing
from diffuse.data.datasets import digits
from diffuse.runs.drawing import drawing_of
from diffuse.runs.trained import load_for
from diffuse.scoring.distances import frechet_distance, statistics
from diffuse.scoring.features import torchscript
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import sha256
from tests.support.commands import config, output
from tests.support.scoring import FAST, as_folder, as_npz, report, save_network, score, smooth, tiles

FEW = ["n=20", "sampler.steps=2", "metrics=[fid]"]


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    """In a new folder, with a new feature network."""
    monkeypatch.chdir(tmp_path)
    return [*tiles(tmp_path), f"data_dir={tmp_path / 'data'}"]


def written() -> list[Path]:
    return list(Path("outputs").rglob("*"))


def test_the_number_is_that_of_the_core(tiny_run, words):
    """Drawn, rounded, described and compared in a few lines: the command adds files and nothing else."""
    found = score(f"ckpt={tiny_run}", "name=of-samples", *FEW, *words, "seed=3", "reference=test")
    typed = config("sample", f"ckpt={tiny_run}", "sampler=ddim", "sampler.steps=2", "seed=3", *FAST)
    ((_, pixels),) = drawing_of(load_for(typed), typed).batches(20, batch_size=64)
    network = torchscript(Device("cpu"), words[1].partition("=")[2])
    images = [pixels.numpy(), digits().test.images]
    expected = frechet_distance(*(statistics(network(some)["features"]) for some in images))
    assert found == {"fid_tiles": pytest.approx(expected, rel=1e-9)}


def test_a_score_carries_what_it_depends_on(tiny_run, words):
    score(f"ckpt={tiny_run}", "name=facts", *FEW, *words, "seed=5", "reference=test", "metrics=[fid,kid]")
    facts = report(tiny_run / "eval" / "facts")
    protocol, value = facts["sample_protocol"], facts["sample_scores"]["fid_tiles"]
    assert (value["n"], value["n_real"]) == (20, 359)
    assert "biased upwards" in value["warnings"][1]
    assert "20 images do not determine a covariance of 48 features" in value["warnings"][0]
    assert protocol["reference"] == {"name": "digits:test", "n": 359, "fingerprint": digits().test.sha256}
    assert protocol["features"]["sha256"] == sha256(Path(words[1].partition("=")[2]))
    assert (protocol["features"]["name"], protocol["features"]["dtype"]) == ("tiles", "float32")
    assert protocol["features"]["resize"] == "none, grey as three equal channels, pixels from 0 to 255"
    drawn = protocol["samples"]
    assert (drawn["n"], drawn["seed"], drawn["label"], drawn["precision"]) == (20, 5, None, "float32")
    assert (drawn["sampler"]["_target_"], drawn["sampler"]["steps"]) == ("ddim", 2)
    assert drawn["network_calls"] == 2
    assert facts["checkpoint_sha256"] and Path(facts["checkpoint"]).name.endswith(".pt")
    assert {"fid", "kid"} <= facts["seconds"].keys()
    assert facts["versions"]["torch"] == version("torch")
    assert {"diffuse", "torch-fidelity", "numpy", "scipy", "python"} <= facts["versions"].keys()
    assert facts["complete"] is True


def test_the_batch_size_changes_nothing(tiny_run, words):
    """To the last bit, with a last batch that is not full."""
    options = [f"ckpt={tiny_run}", "n=70", "sampler.steps=2", "metrics=[fid,kid]", *words]
    found = [score(*options, f"name=size{size}", f"batch_size={size}") for size in (1, 100)]
    assert found[0] == found[1]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_folder_that_sample_wrote_scores_as_drawing_on_the_fly(tiny_run, words, sampler):
    drawing = [f"ckpt={tiny_run}", "n=20", f"sampler={sampler}", "sampler.steps=2", "seed=7", *FAST]
    sample.run(config("sample", *drawing, f"name=drawn-{sampler}"), output())
    folder = tiny_run / "samples" / f"drawn-{sampler}"
    on_the_fly = score(*drawing, f"name=fly-{sampler}", "metrics=[fid]", *words)
    rest = ["metrics=[fid]", *words]
    places = {"folder": folder, "npz": folder / "samples.npz", "images": folder / "images"}
    for name, place in places.items():
        found = score(f"ckpt={tiny_run}", f"samples={place}", f"name={name}-{sampler}", *rest)
        assert found["fid_tiles"] == pytest.approx(on_the_fly["fid_tiles"], rel=1e-6)
    alone = score(f"samples={folder}", "reference=digits:train", *rest)
    assert alone["fid_tiles"] == pytest.approx(on_the_fly["fid_tiles"], rel=1e-6)


def test_another_seed_sampler_or_reference_is_another_number(tiny_run, words):
    changes = {
        "none": [],
        "seed": ["seed=1"],
        "sampler": ["sampler=ddpm", "sampler.steps=2"],
        "real": ["reference=test"],
    }
    found = [score(f"ckpt={tiny_run}", f"name=other-{name}", *FEW, *words, *some) for name, some in changes.items()]
    assert len({values["fid_tiles"] for values in found}) == 4


def test_labels_are_drawn_as_asked(conditional_run, words):
    found = [score(f"ckpt={conditional_run}", f"name=l{label}", *FEW, *words, f"label={label}") for label in (1, 2)]
    assert found[0] != found[1]


def test_two_folders_are_compared_without_a_checkpoint(words):
    a, b = as_folder(Path("a").absolute(), smooth(12, 1)), as_npz(Path("b.npz").absolute(), smooth(15, 2))
    found = score(f"samples={a}", f"reference={b}", "name=two", "metrics=[fid,kid,precision_recall]", *words)
    assert list(found) == ["fid_tiles", "kid_tiles", "precision_tiles", "recall_tiles"]
    facts = report(Path("outputs/eval/two"))
    assert (facts["sample_scores"]["fid_tiles"]["n"], facts["sample_scores"]["fid_tiles"]["n_real"]) == (12, 15)
    same = score(
        f"samples={a}", f"reference={a}", "name=same", "metrics=[fid,precision_recall,density_coverage]", *words
    )
    assert same["fid_tiles"] == pytest.approx(0, abs=1e-6)
    assert same["precision_tiles"] == same["recall_tiles"] == same["coverage_tiles"] == 1.0


def test_statistics_of_one_evaluation_are_the_reference_of_another(words):
    a, b = (as_npz(Path(f"{name}.npz").absolute(), smooth(60, seed)) for name, seed in (("a", 1), ("b", 2)))
    whole = score(f"samples={a}", f"reference={b}", "name=whole", "metrics=[fid]", *words)
    score(f"samples={b}", f"reference={a}", "name=other", "metrics=[kid]", *words)
    kept = Path("outputs/eval/other/statistics.npz").absolute()
    found = score(f"samples={a}", f"reference={kept}", "name=by-file", "metrics=[fid]", *words)
    assert found["fid_tiles"] == pytest.approx(whole["fid_tiles"], rel=1e-12)
    assert report(Path("outputs/eval/by-file"))["sample_scores"]["fid_tiles"]["n_real"] is None
    before = written()
    for name in ("kid", "precision_recall", "density_coverage", "sfid", "memorisation"):
        with pytest.raises(UsageError, match=rf"metrics=\[{name}\] needs images, and reference=.* holds mu and sigma"):
            score(f"samples={a}", f"reference={kept}", f"metrics=[{name}]", *words)
    assert written() == before


def test_a_finished_evaluation_is_said_again_and_nothing_computed(tiny_run, words):
    folder = tiny_run / "eval" / "finished"
    first = score(f"ckpt={tiny_run}", "name=finished", *FEW, *words)
    before = (folder / "eval.json").read_bytes()
    (folder / "statistics.npz").unlink()
    assert score(f"ckpt={tiny_run}", "name=finished", *FEW, *words) == first
    assert (folder / "eval.json").read_bytes() == before
    assert not (folder / "statistics.npz").exists()
    assert not (folder / "features").exists()
    with pytest.raises(
        UserError, match="finished holds an evaluation that differs in n, sampler.steps: choose another name="
    ):
        score(f"ckpt={tiny_run}", "name=finished", *FEW, *words, "n=21", "sampler.steps=3")
    assert (folder / "eval.json").read_bytes() == before


def test_an_evaluation_of_other_images_under_the_same_keys_is_refused(words):
    a, options = Path("a").absolute(), ["name=moved", "metrics=[fid]", *words]
    as_folder(a, smooth(12, 1))
    as_npz(Path("b.npz"), smooth(9, 3))
    places = [f"samples={a}", f"reference={Path('b.npz').absolute()}"]
    score(*places, *options)
    before = Path("outputs/eval/moved/eval.json").read_bytes()
    as_folder(a, smooth(12, 2))
    with pytest.raises(UserError, match="moved holds an evaluation that differs in samples: choose another name="):
        score(*places, *options)
    shutil.rmtree(a)
    assert Path("outputs/eval/moved/eval.json").read_bytes() == before


def test_real_features_are_shared_by_evaluations_and_not_by_splits(tiny_run, words):
    kept = []
    for name, reference in (("one", "train"), ("two", "train"), ("three", "test"), ("four", "digits:test")):
        score(f"ckpt={tiny_run}", f"name=kept-{name}", *FEW, *words, f"reference={reference}", f"seed={len(kept)}")
        kept.append({path: path.stat().st_mtime_ns for path in Path("data/features").rglob("*.npy")})
    assert kept[0] == kept[1]
    assert len(kept[2]) == 2
    assert kept[3] == kept[2]
    other = Path("other.pt").absolute()
    save_network(other)
    found = [score(f"ckpt={tiny_run}", "name=low", *FEW, *words, f"features.path={other}", "features.low=-1")]
    assert list(found[0]) == ["fid_other"]
    assert len(list(Path("data/features").rglob("*.npy"))) == 3


def test_likelihood_samples_and_memorisation_in_one_command(tiny_run, words):
    scores = "metrics=[bound,density_coverage,memorisation]"
    found = score(f"ckpt={tiny_run}", "name=of-everything", "n=20", "levels=3", "sampler.steps=2", scores, *words)
    assert list(found) == [
        "bound",
        "density_tiles",
        "coverage_tiles",
        "memorisation_tiles",
        "memorisation_pixels",
    ]
    folder = tiny_run / "eval" / "of-everything"
    assert (folder / "memorisation.png").exists() and (folder / "terms.png").exists()
    assert json.loads((folder / "eval.json").read_text())["values"]["memorisation"].keys() == {
        "memorisation_tiles",
        "memorisation_pixels",
    }


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["samples={a}", "reference={a}", "n=13"], UsageError, "n must be at most 12, the number of images in .*/a,"),
        (["samples={empty}", "reference={a}"], UserError, "samples=.*empty holds no images"),
        (["samples={a}", "reference={empty}"], UserError, "reference=.*empty holds no images"),
        (["samples={a}", "reference=nothing"], UserError, "reference=nothing is neither a folder nor a file"),
        (
            ["samples={a}", "reference=cifar11:train"],
            UsageError,
            "the data set must be .*you mean 'cifar10'",
        ),
        (["samples={a}", "reference=digits:validation"], UsageError, "a data set has the splits train and test"),
        (["samples={a}"], UsageError, "reference=train is a split of a run's data set: give ckpt=, or DATASET:train"),
        (["reference={a}"], UsageError, "ckpt is required: diffuse eval ckpt=RUN"),
        (
            ["samples=gaussian:test", "reference={a}"],
            UserError,
            "the images of gaussian have values that are not 8-bit pixels",
        ),
        (["samples={a}", "reference={a}", "metrics=[is]"], UsageError, r"metrics=\[is\] does not work"),
        (["samples={a}", "reference={a}", "metrics=[fd]"], UsageError, "metrics must be one of"),
    ],
)
def test_what_cannot_be_scored_is_named_and_leaves_nothing(words, given, error, message):
    places = {"a": as_folder(Path("a").absolute(), smooth(12)), "empty": Path("empty").absolute()}
    places["empty"].mkdir()
    with pytest.raises(error, match=message):
        score("metrics=[fid]", *words, *(word.format(**places) for word in given))
    assert not Path("outputs").exists()
    assert not Path("data").exists()


def test_what_has_no_pixels_is_not_scored(gaussian_run, words):
    before = set(gaussian_run.rglob("*"))
    with pytest.raises(UserError, match="the images of gaussian have values that are not 8-bit pixels"):
        score(f"ckpt={gaussian_run}", *FEW, *words)
    assert set(gaussian_run.rglob("*")) == before


def test_images_that_no_metric_looks_at_are_refused(tiny_run, words):
    a = as_npz(Path("a.npz").absolute(), smooth(12, 1))
    before = written()
    for metrics in ("metrics=[bound,ode]", "metrics=[bpd]"):
        with pytest.raises(UsageError, match="samples= are scored by"):
            score(f"ckpt={tiny_run}", f"samples={a}", metrics)
    for key in ("sampler.steps=3", "label=1", "sampler=ddpm"):
        with pytest.raises(UsageError, match=f"{key.partition('=')[0]} is about drawing images"):
            refuse_keys_of_drawing([f"samples={a}", key])
    with pytest.raises(UsageError, match="digits:train or digits:test"):
        score(f"samples={a}", "reference=digits", "metrics=[fid]", *words)
    assert written() == before
