"""Which sampler draws where none is named: the method's, that of the training's grids, or the recommended one."""

import pytest

from diffuse.data.images import ImageKind
from diffuse.options.formulas import Formulas
from diffuse.options.reference import options
from diffuse.runs.recommended import method, resolved
from diffuse.runs.sampler import Sampler
from diffuse.system.errors import UsageError
from tests.support.commands import config

DIGITS = ImageKind("digits", 1, 8, 8, [])
METHODS = [option.name for option in options("method")]


def sampler_of(words: list[str], training: list[str], command: str = "sample") -> dict:
    """The node of `diffuse COMMAND WORDS` for a network that was trained with these words."""
    run = config("train", *training)
    return resolved(config(command, "ckpt=x", *words).sampler, run.prediction, run.sampler)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_sampled_as_its_paper_does(method: str):
    target = {"edm": "heun", "flow": "ddim", "ect": "consistency"}.get(method, "ancestral")
    node = sampler_of([], [f"method={method}"])
    assert node["_target_"] == target
    typed = config("sample", "ckpt=x", f"sampler={'ddpm' if target == 'ancestral' else target}").sampler
    assert node == typed


def test_an_evaluation_draws_as_the_training_did():
    node = sampler_of([], ["sampler=deis", "sampler.steps=7", "sampler.order=2"], "eval")
    assert (node["_target_"], node["steps"], node["order"]) == ("deis", 7, 2)
    assert sampler_of([], [], "eval") == config("eval", "ckpt=x", "sampler=deis").sampler  # the recipe of the digits


def test_typed_keys_go_before_those_of_the_choice():
    node = sampler_of(["sampler.steps=9", "sampler.clip=dynamic", "sampler.eps_scale=1.01"], ["sampler=deis"], "eval")
    assert [node[key] for key in ("_target_", "steps", "clip", "eps_scale")] == ["deis", 9, "dynamic", 1.01]


def test_clipping_is_typed_without_the_percentile_of_the_training():
    given = ["sampler=ddim", "sampler.clip=dynamic", "sampler.percentile=0.9"]
    assert sampler_of([], given, "eval")["percentile"] == 0.9
    assert sampler_of(["sampler.clip=true"], given, "eval")["percentile"] is None


def test_a_named_sampler_clips_as_the_training_did():
    assert sampler_of(["sampler=ddim"], ["sampler.clip=false"])["clip"] is False
    given = ["sampler=ddim", "sampler.clip=dynamic", "sampler.percentile=0.9"]
    assert clipping_of(sampler_of(["sampler=unipc"], given)) == ("dynamic", 0.9)
    assert clipping_of(sampler_of(["sampler=unipc", "sampler.percentile=0.8"], given)) == ("dynamic", 0.8)
    assert clipping_of(sampler_of(["sampler=unipc", "sampler.clip=true"], given)) == (True, None)
    assert clipping_of(sampler_of(["sampler=unipc"], [])) == (None, None)


def clipping_of(node: dict) -> tuple:
    return node["clip"], node["percentile"]


def test_a_spacing_needs_steps_where_the_training_had_times():
    with pytest.raises(UsageError, match="^the training had sampler.times=.* sampler.spacing needs sampler.steps too"):
        sampler_of(["sampler.spacing=karras"], ["sampler=ddim", "sampler.times=[1000,500]"], "eval")


def test_typed_steps_replace_the_times_of_the_training():
    given = ["sampler=ddim", "sampler.times=[1000,500]"]
    assert sampler_of([], given, "eval")["times"] == [1000, 500]
    assert sampler_of(["sampler.steps=9"], given, "eval")["times"] is None


@pytest.mark.parametrize("evaluations", [*range(1, 26), 50, 100, 1000])
@pytest.mark.parametrize("training", [[], ["schedule=cosine", "prediction=v"], *([f"method={m}"] for m in METHODS)])
def test_the_recommended_sampler_takes_so_many_evaluations(training: list[str], evaluations: int):
    node = sampler_of(["sampler=auto", f"sampler.evaluations={evaluations}"], training)
    sampler = Sampler(node, Formulas.of(config("train", *training), DIGITS), DIGITS, ())
    assert sampler.evaluations == sampler.calls == evaluations


def test_the_recommended_sampler_is_that_option_typed():
    node = sampler_of(["sampler=auto"], [])
    assert node["steps"] == 10
    name = {option.target: option.name for option in options("sampler")}[node["_target_"]]
    assert node == config("sample", "ckpt=x", f"sampler={name}", "sampler.steps=10").sampler


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("sample", ["sampler=auto", "sampler.evaluations=0"], "sampler.evaluations must be at least 1, not 0"),
        ("sample", ["sampler=auto", "sampler.steps=5"], "sampler.steps follows from sampler.evaluations"),
        ("eval", ["sampler=auto", "sampler.times=[9,5]"], "sampler.times follows from sampler.evaluations"),
    ],
)
def test_impossible_choices_are_refused(command: str, words: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        sampler_of(words, [], command)


def test_the_grids_of_a_training_need_a_sampler():
    run = config("train", "sampler=training")
    with pytest.raises(UsageError, match="sampler=training is for a trained network"):
        resolved(run.sampler, run.prediction, run.sampler)


def test_the_prediction_of_an_older_config_is_known_by_its_path():
    assert method({"_target_": "diffuse.predictions.edm"}, {})["_target_"] == "heun"
