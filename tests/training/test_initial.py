"""Trainings that begin with given weights: which tensors are kept, which are new, and what is said."""

import numpy as np
import pytest
import torch

from diffuse.runs.trained import load
from diffuse.system.device import Device
from tests.support.commands import TINY, diffuse
from tests.support.diffusers_nets import random_network, save_pipeline

TINY_STEP = 1e-25
ONE = ["steps=1", "optim.lr=1e-30", "images.every=100", "sampler.steps=1"]  # a step that moves no weight


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run on labels of digits, and one without labels: six steps each."""
    home = tmp_path_factory.mktemp("init")
    for name, words in {"plain": [], "labels": ["class_conditional=true", "prediction=v"]}.items():
        done = diffuse("train", *TINY, *words, f"name={name}", "ema.decay=0.5", "optim.lr=0.1", cwd=home)
        assert done.returncode == 0, done.stderr
    return home


def begun(home, name: str, *words: str, network=TINY) -> tuple[dict[str, torch.Tensor], str]:
    """The weights after a step that moves nothing, and what was said."""
    done = diffuse("train", *network, *ONE, f"name={name}", *words, cwd=home)
    assert done.returncode == 0, done.stderr
    state = torch.load(home / f"outputs/{name}/checkpoints/last.pt", weights_only=True)
    return state["model"], done.stdout


def refused(home, *words: str) -> str:
    done = diffuse("train", *TINY, *ONE, "name=refused", *words, cwd=home)
    assert done.returncode in (1, 2)
    assert not (home / "outputs/refused").exists()
    assert len(done.stderr.splitlines()) <= 4
    return done.stderr


def weights(home, name: str, which: str = "ema") -> dict[str, torch.Tensor]:
    return dict(load(str(home / "outputs" / name), Device("cpu", "float32"), weights=which).net.state_dict())


def assert_equal_but(found, expected, *names: str) -> None:
    others = [name for name in found if name not in names]
    assert all(torch.equal(found[name], expected[name]) for name in others)
    assert set(others) == expected.keys() - {*names}


@pytest.mark.parametrize("which", ["ema", "model"])
def test_the_averaged_or_the_trained_weights_begin_a_run(home, which):
    found, said = begun(home, f"one-{which}", "init.ckpt=plain", f"init.weights={which}")
    assert_equal_but(found, weights(home, "plain", which))
    assert not torch.equal(
        found["head.bias"], weights(home, "plain", "model" if which == "ema" else "ema")["head.bias"]
    )
    assert f"{which} weights" in said
    assert "init: " not in said


def test_the_network_has_the_options_of_the_given_one_but_for_typed_ones(home):
    options = [word for word in TINY if not word.startswith("unet")]
    found, _ = begun(home, "options", "init.ckpt=plain", "unet.dropout=0.5", network=options)
    assert_equal_but(found, weights(home, "plain"))
    assert load(str(home / "outputs/options"), Device("cpu")).config.unet["dropout"] == 0.5
    kept, _ = begun(home, "kept-options", "init.ckpt=options", network=options)
    assert_equal_but(kept, weights(home, "options"))
    assert load(str(home / "outputs/kept-options"), Device("cpu")).config.unet["dropout"] == 0.5
    again = [*options, *ONE, "name=options", "init.ckpt=plain", "unet.dropout=0.1"]
    done = diffuse("train", *again, cwd=home)
    assert done.returncode == 2
    assert "unet.dropout" in done.stderr
    message = refused(home, "init.ckpt=plain", "unet.channels=16")
    assert "Leave out unet=" in message


def test_rows_of_new_classes_are_those_of_an_untrained_network(home):
    found, said = begun(home, "to-labels", "init.ckpt=plain", "class_conditional=true")
    assert_equal_but(found, weights(home, "plain"), "embed_label.weight")
    untrained, _ = begun(home, "untrained", "class_conditional=true")
    assert torch.equal(found["embed_label.weight"], untrained["embed_label.weight"])
    assert found["embed_label.weight"].shape == (11, 32)
    assert "init: labels: 0 of 10 classes keep their rows" in said


def test_rows_of_classes_with_the_same_name_are_kept(home, tmp_path):
    """A file with twelve classes, after digits: ten rows are kept, two are new, and that of no class is the last."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "more.npz", arr_0=images, arr_1=np.arange(40) % 12)
    words = ["dataset=npz", f"dataset.path={tmp_path / 'more.npz'}", "class_conditional=true", "prediction=v"]
    found, said = begun(home, "more", "init.ckpt=labels", *words)
    old, table = weights(home, "labels")["embed_label.weight"], found["embed_label.weight"]
    assert_equal_but(found, weights(home, "labels"), "embed_label.weight")
    untrained = begun(home, "untrained-more", *words)[0]["embed_label.weight"]
    for row, expected in enumerate([*old[:10], *untrained[10:12], old[10]]):
        assert torch.equal(table[row], expected), row
    assert "init: labels: 10 of 12 classes keep their rows" in said


def test_labels_may_be_left_out(home):
    found, said = begun(home, "without", "init.ckpt=labels", "prediction=v")
    expected = weights(home, "labels")
    del expected["embed_label.weight"]
    assert_equal_but(found, expected)
    assert "no labels" in said


def test_a_head_for_a_learned_variance_keeps_the_prediction(home):
    found, said = begun(home, "variance", "init.ckpt=plain", "variance=learned", "loss=hybrid")
    old = weights(home, "plain")
    assert_equal_but(found, old, "head.weight", "head.bias")
    assert torch.equal(found["head.weight"][:1], old["head.weight"])
    assert found["head.weight"][1:].abs().max() < TINY_STEP
    assert "new outputs for the learned variance" in said
    back, _ = begun(home, "back", "init.ckpt=variance")
    assert_equal_but(back, old)


def test_another_prediction_needs_a_new_head(home):
    assert "set prediction=eps, or init.head=new" in refused(home, "init.ckpt=plain", "prediction=v")
    found, said = begun(home, "new-head", "init.ckpt=plain", "prediction=v", "init.head=new")
    assert_equal_but(found, weights(home, "plain"), "head.weight", "head.bias")
    assert found["head.weight"].abs().max() < TINY_STEP
    assert "a new head" in said


def test_another_size_keeps_attention_on_its_levels(home, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), np.uint8)
    np.savez(tmp_path / "large.npz", arr_0=images)
    words = ["dataset=npz", f"dataset.path={tmp_path / 'large.npz'}"]
    options = [word for word in TINY if word != "unet=tiny"]
    found, said = begun(home, "large", "init.ckpt=plain", *words, network=options)
    assert_equal_but(found, weights(home, "plain"))
    assert load(str(home / "outputs/large"), Device("cpu")).config.unet["attention"] == [8]
    assert "images of 16 x 16 pixels, before 8 x 8" in said


def test_weights_of_diffusers_begin_a_run(home, tmp_path):
    folder = save_pipeline(random_network("widths that are no multiples"), tmp_path / "pipeline")
    words = [word for word in TINY if not word.startswith("unet")]
    found, _ = begun(home, "foreign", f"init.ckpt={folder}", "dataset.pad=4", network=words)
    assert_equal_but(found, load(str(folder), Device("cpu", "float32")).net.state_dict())
    assert "3 channels" in refused(home, f"init.ckpt={save_pipeline(random_network('paper'), tmp_path / 'colour')}")


def test_rows_of_classes_without_names_begin_anew(home, tmp_path):
    """Their numbers are not those of another data set, unless it is said to be theirs."""
    net = random_network("widths that are no multiples", num_class_embeds=10, sample_size=8)
    folder = save_pipeline(net, tmp_path / "pipeline")
    options = [word for word in TINY if not word.startswith("unet")]
    words = [f"init.ckpt={folder}", "class_conditional=true", "label_dropout=0"]
    found, said = begun(home, "unnamed", *words, network=options)
    table, given = found["embed_label.weight"], dict(net.state_dict())["class_embedding.weight"]
    assert not (table == given).any()
    assert "all new, since the names of those of init.ckpt are not known; foreign.dataset says them" in said
    found, _ = begun(home, "named", *words, "foreign.dataset=digits", network=options)
    assert torch.equal(found["embed_label.weight"], given)


def test_what_is_said_of_foreign_weights_needs_some(home):
    assert "foreign.levels is about the weights of init.ckpt" in refused(home, "foreign.levels=10")
    assert "outputs/plain is ours" in refused(home, "init.ckpt=plain", "foreign.levels=10")


def test_frozen_parameters_stay_and_a_run_with_them_is_resumed(home):
    words = [
        *TINY,
        "init.ckpt=plain",
        "init.freeze=[down.*,*.bias]",
        "name=frozen",
        "optim.decay=none",
        "optim.lr=0.01",
    ]
    assert diffuse("train", *words, "steps=3", cwd=home).returncode == 0
    done = diffuse("train", *words, "steps=6", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "resumed from step 3" in done.stdout
    found = torch.load(home / "outputs/frozen/checkpoints/last.pt", weights_only=True)["model"]
    for name, before in weights(home, "plain").items():
        assert torch.equal(found[name], before) is (name.startswith("down.") or name.endswith(".bias")), name
    assert "Did you mean 'down'" in refused(home, "init.ckpt=plain", "init.freeze=[dwn.*]")
    assert "nothing to train" in refused(home, "init.ckpt=plain", "init.freeze=[*]")


def test_a_given_command_goes_on_when_the_weights_it_began_with_are_gone(home):
    words = [*TINY, "init.ckpt=going", "name=goes-on", "optim.decay=none"]
    assert diffuse("train", *TINY, "name=going", cwd=home).returncode == 0
    assert diffuse("train", *words, "steps=3", cwd=home).returncode == 0
    (home / "outputs/going").rename(home / "outputs/gone")
    done = diffuse("train", *words, "steps=6", cwd=home)
    assert done.returncode == 0, done.stderr
