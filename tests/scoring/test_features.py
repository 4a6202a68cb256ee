"""Feature networks: Inception as torch-fidelity has it, the user's own networks, and files that are not weights."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as theirs

from diffuse.scoring.distances import inception_score, kernel_distance, precision_recall
from diffuse.scoring.features import Features, inception, torchscript
from diffuse.scoring.sample_scores import needed_outputs
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError
from tests.support.commands import diffuse
from tests.support.scoring import FAST, as_folder, as_npz, report, save_network, score, smooth

COUNT = 16  # what goes through the network at once; each costs it a quarter of a second


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Inception's weights, drawn at random so that every layer's output is of the size of its input."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    random = torch.Generator().manual_seed(1)
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)  # torch-fidelity makes none without weights
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        shapes = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()
    state = {}
    for name, weight in shapes.items():
        constant = torch.zeros if name.endswith(("bias", "mean", "tracked")) else torch.ones
        state[name] = constant(weight.shape, dtype=weight.dtype)
        if weight.dim() > 1:
            spread = 40 if name.startswith("fc.") else 1  # so that it is certain of some classes
            spread *= (2 / weight[0].numel()) ** 0.5
            state[name] = spread * torch.randn(weight.shape, generator=random)
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def network(weights) -> Features:
    return inception(Device("cpu", "float32"), str(weights))


@pytest.fixture(scope="session")
def sides() -> dict[str, np.ndarray]:
    """Two sets of images that differ."""
    return {"a": smooth(COUNT, 1), "b": smooth(COUNT, 2) // 2 + 40}


@pytest.fixture(scope="session")
def vectors(network, sides) -> dict[str, dict[str, np.ndarray]]:
    return {side: network(images) for side, images in sides.items()}


@pytest.fixture(scope="session")
def measured(weights, sides) -> dict[str, float]:
    """What torch-fidelity says of the same images; its FID takes a minute, and its formula stands in test_metrics."""
    inputs = [torch.utils.data.TensorDataset(torch.from_numpy(images)) for images in sides.values()]
    first = [FirstOf(data) for data in inputs]
    return torch_fidelity.calculate_metrics(
        input1=first[0], input2=first[1], kid=True, isc=True, prc=True, kid_subset_size=COUNT, batch_size=COUNT,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights), cuda=False, cache=False,
        verbose=False, save_cpu_ram=True,
    )  # fmt: skip


class FirstOf(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, row):
        return self.data[row][0]


def test_scores_of_arrays_are_those_of_torch_fidelity(vectors, measured):
    a, b = vectors["a"], vectors["b"]
    expected = measured["kernel_inception_distance_mean"]
    assert kernel_distance(a["features"], b["features"])[0] == pytest.approx(expected, rel=1e-3)
    expected = [measured[f"inception_score_{value}"] for value in ("mean", "std")]
    assert inception_score(a["logits"]) == pytest.approx(expected, rel=1e-3)
    assert inception_score(a["logits"])[0] > 1.01
    expected = [measured["precision"], measured["recall"]]
    assert precision_recall(a["features"], b["features"]) == pytest.approx(expected, rel=1e-3)
    assert 0 < sum(expected) < 2


def test_a_folder_and_an_npz_file_score_as_arrays_do(tmp_path, monkeypatch, weights, sides, measured):
    monkeypatch.chdir(tmp_path)
    folder, reference = as_folder(tmp_path / "a", sides["a"]), as_npz(tmp_path / "b.npz", sides["b"])
    scores = ["metrics=[kid,is,precision_recall,sfid]", f"features.weights={weights}", "data_dir=data", "name=both"]
    found = score(f"samples={folder}", f"reference={reference}", *scores)
    names = {"kid": "kernel_inception_distance_mean", "is": "inception_score_mean"}
    for name in ("kid", "is", "precision", "recall"):
        assert found[name] == pytest.approx(measured[names.get(name, name)], rel=1e-3)
    features = report(Path("outputs/eval/both"))["sample_protocol"]["features"]
    assert (features["name"], features["dtype"]) == ("inception", "float32")
    assert "299" in features["resize"]


def test_an_image_has_the_same_vectors_in_every_batch_and_one_channel_is_three_equal_ones(network, vectors, sides):
    """To the last bit: a network on the CPU is called with a fixed number of rows."""
    grey = smooth(2)[:, :1]
    once, others = network(grey), network(np.concatenate([grey.repeat(3, axis=1), sides["a"][3:5]]))
    assert once.keys() == {"features", "logits", "spatial"}
    assert [part.shape for part in once.values()] == [(2, 2048), (2, 1008), (2, 7 * 17 * 17)]
    for name, found in others.items():
        np.testing.assert_array_equal(found[:2], once[name])
        np.testing.assert_array_equal(found[2:], vectors["a"][name][3:5])
    assert len(np.unique(once["features"], axis=0)) == 2


def test_weights_without_the_last_layer_give_no_inception_score(tmp_path, weights):
    state = torch.load(weights)
    torch.save(
        {name: 0 * weight if name.startswith("fc.") else weight for name, weight in state.items()}, tmp_path / "w"
    )
    features = inception(Device("cpu"), str(tmp_path / "w"))
    assert features.outputs == ("features", "spatial")
    assert needed_outputs(["fid", "sfid"], features, 2, 2) == ["features", "spatial"]
    with pytest.raises(UsageError, match="does not work with features=inception: it has no class logits"):
        needed_outputs(["fid", "is"], features, 2, 2)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("make", ["inception", "classifier"])
def test_code_among_weights_is_refused_and_not_run(tmp_path, make):
    torch.save({"net": Bomb(tmp_path / "ran")}, tmp_path / "code.pt")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    (tmp_path / "text").write_text("no weights")
    torch.save({"net": torch.zeros(3)}, tmp_path / "other")
    places = ["reference=digits:test", f"samples={as_folder(tmp_path / 'a', smooth(3))}", "data_dir=" + str(tmp_path)]
    for name in ("code.pt", "pickle", "text", "other", "nothing"):
        with pytest.raises(UserError, match=f"features.weights=.*{name}"):
            score(*places, "metrics=[fid]", f"features={make}", f"features.weights={tmp_path / name}")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "outputs").exists()


def test_without_weights_and_network_it_says_what_to_get_and_where_to_put_it(tmp_path):
    """A proxy that refuses stands for a machine without a network, whether this one has one or not."""
    place = as_folder(tmp_path / "a", smooth(3))
    refusing = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "http_proxy"), "http://127.0.0.1:9")
    words = [f"samples={place}", f"reference={place}", "metrics=[fid]", *FAST]
    done = diffuse("eval", *words, cwd=tmp_path, TORCH_HOME=str(tmp_path / "torch"), **refusing)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) <= 4, done.stderr
    assert "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception" in done.stderr
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth") in done.stderr
    assert "features.weights=FILE" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_network_of_ones_own_is_given_its_range_and_size(tmp_path):
    save_network(tmp_path / "my net.pt")
    device, images = Device("cpu"), smooth(3, size=16)
    plain = torchscript(device, str(tmp_path / "my net.pt"))
    tiled = images.astype(np.float32).reshape(3, 3, 4, 4, 4, 4).mean((3, 5)).reshape(3, 48)
    np.testing.assert_allclose(plain(images)["features"], tiled, rtol=1e-5)
    ranged = torchscript(device, str(tmp_path / "my net.pt"), low=-1.0, high=3.0)
    np.testing.assert_allclose(ranged(images)["features"], -1 + 4 * tiled / 255, rtol=1e-4, atol=1e-5)
    resized = torchscript(device, str(tmp_path / "my net.pt"), size=4)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images).float(), (4, 4), mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(resized(images)["features"], expected.flatten(1).numpy(), rtol=1e-5)
    grey = images[:, :1]
    np.testing.assert_array_equal(plain(grey)["features"], plain(grey.repeat(3, axis=1))["features"])
    assert (plain.name, plain.score_name("fid"), plain.outputs) == ("my-net", "fid_my-net", ("features",))
    assert "to 4 x 4" in resized.resize
    assert "from -1 to 3" in ranged.resize
    assert plain.sha256 == resized.sha256
    assert len({plain.resize, resized.resize, ranged.resize}) == 3


def test_a_network_of_ones_own_must_be_one(tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    for name, why in (("text.pt", "is not a network saved by torch.jit.save"), ("none.pt", "must be a file")):
        with pytest.raises(UserError, match=f"features.path=.*{name}.* {why}"):
            torchscript(Device("cpu"), str(tmp_path / name))


@pytest.mark.parametrize("name", ["is", "sfid"])
def test_a_network_of_ones_own_gives_no_classes_and_no_maps(tmp_path, name):
    save_network(tmp_path / "net.pt")
    with pytest.raises(UsageError, match=rf"metrics=\[{name}\] does not work with features=net"):
        needed_outputs([name], torchscript(Device("cpu"), str(tmp_path / "net.pt")), 2, 2)
