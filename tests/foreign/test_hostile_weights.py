"""Files that are damaged, that lie, or that hold code: words and exit code 1, nothing run, no memory taken."""

import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffuse.runs.trained import load
from diffuse.system.device import Device
from diffuse.system.errors import UserError
from tests.support.commands import FAST, TINY, diffuse
from tests.support.diffusers_nets import random_network, save_pipeline

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class Code:
    """What pickle calls when it reads this."""

    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


def truncated(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def header_of_a_terabyte(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 40) + content[8:])


def rewrite_header(folder: Path, change: Callable[[dict], object]) -> None:
    content = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def a_shape_of_more_than_there_is(folder: Path) -> None:
    rewrite_header(folder, lambda header: header["conv_in.weight"].update(shape=[1 << 20, 1 << 20, 3, 3]))


def offsets_beyond_the_end(folder: Path) -> None:
    rewrite_header(folder, lambda header: header["conv_in.weight"].update(data_offsets=[0, 1 << 40]))


def not_json(folder: Path) -> None:
    (folder / "unet/config.json").write_text("{" * 100_000)


def a_list(folder: Path) -> None:
    (folder / "unet/config.json").write_text("[1, 2]")


def widths_of_a_billion(folder: Path) -> None:
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "block_out_channels": [1 << 30] * 3}))


def a_size_of_a_billion(folder: Path) -> None:
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": 1 << 30}))


def betas_that_are_text(folder: Path) -> None:
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trained_betas": ["0.1", None]}))


def levels_of_a_billion(folder: Path) -> None:
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_train_timesteps": 1 << 40}))


def code_in_a_bin(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).with_suffix(".bin").write_bytes(pickle.dumps({"conv_in.weight": Code()}))


def code_in_a_zip(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"conv_in.weight": Code()}, (folder / WEIGHTS).with_suffix(".bin"))


def a_compressed_zip(folder: Path) -> None:
    """A tensor of 2 GB of zeros in 2 MB."""
    (folder / WEIGHTS).unlink()
    path = (folder / WEIGHTS).with_suffix(".bin")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 24))
        archive.writestr("archive/data/0", b"\0" * (1 << 24))


def a_shard_elsewhere(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    save_file({"conv_in.weight": torch.zeros(16, 3, 3, 3)}, outside)
    (folder / WEIGHTS).unlink()
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../outside.safetensors"}}))


def a_shard_that_is_not_there(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "absent.safetensors"}}))


def repeated_numbers(folder: Path) -> None:
    """A table of a billion rows of which the file holds one."""
    (folder / WEIGHTS).unlink()
    torch.save({"conv_in.weight": torch.zeros(1).expand(1 << 40)}, (folder / WEIGHTS).with_suffix(".bin"))


def classes_of_a_billion(folder: Path) -> None:
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_class_embeds": 1 << 30}))


def other_types(folder: Path) -> None:
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "norm_eps": {"a": [1]}}))


def betas_of_another_type(folder: Path) -> None:
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": [0.02]}))


def names_that_steer_the_terminal(folder: Path) -> None:
    path = (folder / WEIGHTS).with_suffix(".bin")
    (folder / WEIGHTS).unlink()
    torch.save({"\x1b[2J" + "x" * 10_000: torch.zeros(2)}, path)


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(tensors, folder / WEIGHTS)


HOSTILE = [
    truncated,
    header_of_a_terabyte,
    a_shape_of_more_than_there_is,
    offsets_beyond_the_end,
    not_json,
    a_list,
    widths_of_a_billion,
    a_size_of_a_billion,
    betas_that_are_text,
    levels_of_a_billion,
    code_in_a_bin,
    code_in_a_zip,
    a_compressed_zip,
    a_shard_elsewhere,
    a_shard_that_is_not_there,
    repeated_numbers,
    classes_of_a_billion,
    other_types,
    betas_of_another_type,
    names_that_steer_the_terminal,
    no_weights,
    not_finite,
]


@pytest.mark.parametrize("harm", HOSTILE, ids=lambda harm: harm.__name__)
def test_a_folder_that_is_not_what_it_says_ends_in_words(tmp_path, harm):
    folder = save_pipeline(random_network("paper"), tmp_path / "pipeline")
    harm(folder)
    here = tmp_path / "here"
    here.mkdir()
    done = diffuse("sample", f"ckpt={folder}", "n=1", "sampler.steps=1", *FAST, cwd=here)
    assert done.returncode in (1, 2), done.stdout
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) <= 4, done.stderr
    assert len(done.stderr) < 1000 and "\x1b" not in done.stderr
    assert list(here.iterdir()) == []


FILES = {
    "text": lambda path: path.write_text("no weights"),
    "empty": lambda path: path.write_bytes(b""),
    "code": lambda path: path.write_bytes(pickle.dumps(Code())),
    "code in torch's format": lambda path: torch.save({"state_dict": Code()}, path),
    "names that are not known": lambda path: torch.save({"a": torch.zeros(2), "b.c": torch.ones(2)}, path),
    "no names": lambda path: torch.save([torch.zeros(2)], path),
    "a tensor": lambda path: torch.save(torch.zeros(2), path),
    "a mapping in itself": lambda path: torch.save(nested_in_itself(), path),
    "numbers for names": lambda path: torch.save({1: torch.zeros(2)}, path),
}


def nested_in_itself() -> dict:
    content: dict = {}
    content["state_dict"] = content
    return content


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_none_of_these_formats_ends_in_words(tmp_path, name, ending):
    path = tmp_path / f"weights{ending}"
    FILES[name](path)
    done = diffuse("sample", f"ckpt={path}", "n=1", *FAST, cwd=tmp_path, timeout=60)
    assert done.returncode in (1, 2), done.stdout
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) <= 4, done.stderr
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_lying_files_take_no_memory(tmp_path):
    """In this process, whose largest size is known before and after."""
    net = random_network("paper")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for harm in (
        header_of_a_terabyte,
        a_shape_of_more_than_there_is,
        widths_of_a_billion,
        classes_of_a_billion,
        a_compressed_zip,
        repeated_numbers,
    ):
        folder = save_pipeline(net, tmp_path / harm.__name__)
        harm(folder)
        with pytest.raises(UserError):
            load(str(folder), Device("cpu", "float32"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kB


def test_a_table_of_features_that_repeats_numbers_is_not_unfolded(tmp_path):
    """pytorch-ddpm's, whose other tensors are checked by the network they make."""
    table = {"time_embedding.timembedding.0.weight": torch.zeros(1).expand(1 << 34, 64)}
    torch.save({"ema_model": table, "net_model": table}, tmp_path / "ckpt.pt")
    done = diffuse("sample", "ckpt=ckpt.pt", "n=1", *FAST, cwd=tmp_path)
    assert done.returncode == 1
    assert "it repeats numbers" in done.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file of our own format."""
    home = tmp_path_factory.mktemp("own")
    for line in (["train", *TINY, "name=run"], ["export", "ckpt=outputs/run", "to=safetensors", "out=alone"]):
        assert diffuse(*line, cwd=home).returncode == 0
    return home / "alone/model.safetensors"


def with_facts(exported: Path, path: Path, **changes: object) -> Path:
    """The file with other facts in its header."""
    with safe_open(exported, framework="pt") as file:
        facts = json.loads(file.metadata()["diffuse"])
    save_file(load_file(exported), path, {"diffuse": json.dumps({**facts, **changes})})
    return path


def test_of_the_header_of_a_file_nothing_is_taken_but_what_is_known(exported, tmp_path):
    lies = {"foreign": {"format": "x", "files": {"../../elsewhere": "0"}}, "failure": {}, "model": {}, "ema": {}}
    found = load(str(with_facts(exported, tmp_path / "lies.safetensors", **lies)), Device("cpu", "float32"))
    assert found.foreign == {}
    assert found.home == tmp_path
    expected = load(str(exported), Device("cpu", "float32")).net.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.net.state_dict().items())
    with pytest.raises(UserError, match="one set of weights: leave out ema.length"):
        load(str(exported), Device("cpu", "float32"), weights="model")


def test_a_header_of_another_network_takes_no_memory(exported, tmp_path):
    with safe_open(exported, framework="pt") as file:
        config = json.loads(file.metadata()["diffuse"])["config"]
    config["unet"]["channels"] = 1 << 20
    path = with_facts(exported, tmp_path / "large.safetensors", config=config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"in the network of the config"):
        load(str(path), Device("cpu", "float32"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kB


def test_an_origin_breaks_no_table(exported, tmp_path):
    path = with_facts(exported, tmp_path / "named.safetensors", origin="a | b\n\x1b[2J" + "c" * 5000)
    origin = load(str(path), Device("cpu", "float32")).origin
    assert origin.startswith("a  b") and origin.isprintable() and len(origin) <= 1000
