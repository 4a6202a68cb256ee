"""Networks of diffusers, saved by diffusers and loaded here: the same outputs, the same images."""

import json
import shutil
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file, save_file

from diffuse.foreign.diffusers_config import SCHEDULERS as TABLES
from diffuse.foreign.diffusers_names import OLD_ATTENTION
from diffuse.foreign.weights import no_options
from diffuse.mathematics.samplers.ddim import ddim
from diffuse.mathematics.wrappers import Clipped
from diffuse.runs.sampler import Sampler
from diffuse.runs.trained import TrainedNetwork, load
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError
from tests.support.diffusers_nets import (
    NETWORKS,
    Features64,
    in_float64,
    levels,
    ours_in_float64,
    random_network,
    save_pipeline,
)


def loaded(folder) -> TrainedNetwork:
    return load(str(folder), Device("cpu", "float32"))


def inputs(net: UNet2DModel, count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Images, levels and labels in float64."""
    made = torch.Generator().manual_seed(1)
    size = net.config.sample_size
    shape = (count, net.config.in_channels, *((size, size) if isinstance(size, int) else size))
    x = torch.randn(shape, dtype=torch.float64, generator=made)
    t = torch.tensor([3.0, 912.0], dtype=torch.float64).repeat(count)[:count]
    classes = net.config.num_class_embeds
    return x, t, torch.arange(count) % classes if classes else None


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_diffusers(tmp_path, name):
    net = random_network(name)
    ours = loaded(save_pipeline(net, tmp_path / "pipeline"))
    x, t, y = inputs(net)
    with torch.no_grad():
        expected = in_float64(net)(x, t, y).sample
        found = ours_in_float64(ours.net)(x, t, y)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert expected.abs().mean() > 0.1


def test_features_in_float64_are_those_that_diffusers_computes():
    """The stand-in of these tests for the float32 of diffusers."""
    t = torch.tensor([0.0, 3.0, 912.0])
    for flip in (False, True):
        for shift in (0, 1):
            theirs = get_timestep_embedding(t, 32, flip_sin_to_cos=flip, downscale_freq_shift=shift)
            torch.testing.assert_close(Features64(32, flip, shift)(t).float(), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["paper", "adm"])
def test_fifty_ddim_steps_are_those_of_diffusers(tmp_path, name):
    """On diffusers' own times (leading), with our alpha_bar, clipped; of a learned variance the mean alone."""
    net = random_network(name)
    ours = loaded(
        save_pipeline(net, tmp_path / "pipeline", variance_type="learned_range" if name == "adm" else "fixed_small")
    )
    theirs = DDIMScheduler()
    theirs.alphas_cumprod = ours.schedule.alpha_sigma(torch.arange(1, 1001, dtype=torch.float64))[0] ** 2
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(50)
    x, _, y = inputs(net)
    grid = torch.tensor([*(theirs.timesteps + 1), 0], dtype=torch.float64)
    x = start = x / 10  # images that clipping leaves alone at most pixels
    denoiser = ours.formulas.denoiser_of(ours_in_float64(ours.net))
    *_, found = ddim(Clipped(denoiser), start, grid, y)
    in_float64(net)
    with torch.no_grad():
        for t in theirs.timesteps:
            eps = net(x, t.expand(len(x)), y).sample[:, :3]
            x = theirs.step(eps, t, x, eta=0.0, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)
    assert x.abs().mean() > 0.05 and (x.abs() < 1).any()


SCHEDULERS = {
    "schedule": (
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400},
        {"schedule": {"_target_": "cosine", "levels": 400, "zero_terminal_snr": False}},
    ),
    "betas": (
        {"trained_betas": [0.01, 0.02, 0.03]},
        {"schedule": {"_target_": "betas", "path": None, "values": [0.01, 0.02, 0.03], "zero_terminal_snr": False}},
    ),
    "prediction": ({"prediction_type": "v_prediction"}, {"prediction": {"_target_": "v"}}),
    "variance": ({"variance_type": "fixed_large"}, {"variance": "fixed_large"}),
    "log, large": ({"variance_type": "fixed_large_log"}, {"variance": "fixed_large"}),
    "log": ({"variance_type": "fixed_small_log"}, {"variance": "fixed_small"}),
    "clip": ({"clip_sample": False}, {"clip": False}),
    "threshold of 1": ({"thresholding": True, "clip_sample": False}, {"clip": True}),
    "threshold": (
        {"thresholding": True, "sample_max_value": 1e6, "dynamic_thresholding_ratio": 0.9},
        {"clip": "dynamic", "percentile": 0.9},
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_becomes_options(tmp_path, name):
    scheduler, expected = SCHEDULERS[name]
    config = loaded(save_pipeline(random_network("paper"), tmp_path / "pipeline", **scheduler)).config
    found = {"schedule": config.schedule, "prediction": config.prediction, "variance": config.variance}
    found |= {key: config.sampler[key] for key in ("clip", "percentile")}
    assert {key: found[key] for key in expected} == expected


def test_a_limited_threshold_is_refused(tmp_path):
    folder = save_pipeline(random_network("paper"), tmp_path / "pipeline", thresholding=True, sample_max_value=2.0)
    with pytest.raises(UserError, match=r"sample_max_value=2.0 of the scheduler limits its thresholding"):
        loaded(folder)


@pytest.mark.parametrize("limit", [1.0, 1e6])
def test_x0_is_clipped_as_the_scheduler_does(tmp_path, limit):
    """By its thresholding, which with the default sample_max_value=1 is to clip to [-1, 1]."""
    options = {"thresholding": True, "sample_max_value": limit, "dynamic_thresholding_ratio": 0.7}
    network = loaded(save_pipeline(random_network("paper"), tmp_path / "pipeline", **options))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keys = {key: network.config.sampler[key] for key in ("clip", "percentile")}
    denoiser = network.formulas.denoiser_of(ours_in_float64(network.net))
    sampler = Sampler({"_target_": "ddim", **keys}, network.formulas, network.kind, [])
    t = torch.tensor(500.0, dtype=torch.float64)
    expected = DDPMScheduler(**options)._threshold_sample(denoiser(x, t).x0)
    torch.testing.assert_close(sampler.wrap(denoiser)(x, t).x0, expected, rtol=1e-12, atol=1e-12)
    assert (denoiser(x, t).x0.abs() > 1.2).any()


def test_other_schedulers_are_read_with_their_own_defaults(tmp_path):
    folder = save_pipeline(random_network("paper"), tmp_path / "pipeline")
    EulerDiscreteScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    config = loaded(folder).config
    assert (config.schedule["_target_"], config.sampler["clip"]) == ("scaled_linear", False)
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler"):
        loaded(folder)


@pytest.mark.parametrize("name", TABLES)
def test_every_scheduler_of_a_table_is_read_as_its_class_means_it(tmp_path, name):
    """Saved by the class, and with its name alone, when the class's own defaults hold."""
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    folder = save_pipeline(random_network("paper"), tmp_path / "pipeline")
    scheduler.save_pretrained(folder / "scheduler")
    saved = loaded(folder)
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({"_class_name": f"{name}Scheduler"}))
    bare = loaded(folder)
    for network in (saved, bare):
        alpha_bar = network.schedule.alpha_sigma(torch.arange(1, 1001, dtype=torch.float64))[0] ** 2
        torch.testing.assert_close(alpha_bar.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
        assert network.config.sampler["clip"] is bool(getattr(scheduler.config, "clip_sample", False))
        assert network.config.variance == "fixed_small"


@pytest.mark.parametrize("change", [{"timestep_type": "continuous"}, {"use_flow_sigmas": True}])
def test_a_scheduler_of_other_times_is_refused(tmp_path, change):
    folder = save_pipeline(random_network("paper"), tmp_path / "pipeline")
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler", **change}))
    with pytest.raises(UserError, match=f"{next(iter(change))}="):
        loaded(folder)


def test_what_is_said_beside_a_folder_must_fit_it(tmp_path):
    folder = save_pipeline(random_network("paper"), tmp_path / "pipeline")
    assert load(str(folder), Device("cpu"), foreign=replace(no_options(), image_size=16)).kind.size == (16, 16)
    for options, message in (
        ({"image_size": 32}, "foreign.image_size=32 is not the sample_size=16"),
        ({"format": "ddim"}, "foreign.format=ddim is of files"),
    ):
        with pytest.raises(UsageError, match=message):
            load(str(folder), Device("cpu"), foreign=replace(no_options(), **options))


def test_links_into_a_cache_are_read_by_their_own_names(tmp_path):
    """As huggingface_hub keeps downloads: files without endings, and links to them."""
    folder = save_pipeline(random_network("paper"), tmp_path / "pipeline")
    expected = loaded(folder).net.state_dict()
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(each for each in folder.rglob("*") if each.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    found = loaded(folder)
    assert all(torch.equal(value, expected[name]) for name, value in found.net.state_dict().items())
    assert all(name.startswith(str(folder)) for name in found.sources)


def test_our_alpha_bar_is_that_of_the_scheduler(tmp_path):
    """Up to the float32 of diffusers."""
    for number, name in enumerate(("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")):
        folder = save_pipeline(random_network("paper"), tmp_path / str(number), beta_schedule=name)
        theirs = DDPMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod
        ours = loaded(folder).schedule.alpha_sigma(torch.arange(1, 1001, dtype=torch.float64))[0] ** 2
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-4, atol=1e-6)


def other_forms(pipeline) -> dict[str, object]:
    """The same network in the other forms of folders that there are."""
    flat, bare, old, sharded, binary = (pipeline.parent / name for name in ("flat", "bare", "old", "sharded", "binary"))
    shutil.copytree(pipeline / "unet", flat)
    shutil.copy(pipeline / "scheduler/scheduler_config.json", flat)
    shutil.copytree(pipeline / "unet", bare)
    shutil.copytree(pipeline, old)
    weights = old / "unet/diffusion_pytorch_model.safetensors"
    today = {new: older for older, new in OLD_ATTENTION.items()}
    save_file({renamed(name, today): each for name, each in load_file(weights).items()}, weights)
    UNet2DModel.from_pretrained(pipeline / "unet").save_pretrained(sharded / "unet", max_shard_size="40KB")
    UNet2DModel.from_pretrained(pipeline / "unet").save_pretrained(binary / "unet", safe_serialization=False)
    for each in (sharded, binary):
        shutil.copytree(pipeline / "scheduler", each / "scheduler")
    assert len(list((sharded / "unet").glob("*.safetensors"))) > 2
    return {"flat": flat, "old": old, "sharded": sharded, "binary": binary, "bare": bare}


def renamed(name: str, today: dict[str, str]) -> str:
    for new, older in today.items():
        if "attentions" in name:
            name = name.replace(f".{new}.", f".{older}.")
    return name


def test_every_form_of_folder_holds_the_same_network(tmp_path):
    pipeline = save_pipeline(random_network("adm"), tmp_path / "pipeline", variance_type="learned_range")
    expected = loaded(pipeline)
    for name, folder in other_forms(pipeline).items():
        if name == "bare":
            with pytest.raises(UserError, match="foreign.schedule is needed"):
                loaded(folder)
            continue
        found = loaded(folder)
        assert all(torch.equal(found.net.state_dict()[key], value) for key, value in expected.net.state_dict().items())
        assert (found.config.schedule, found.config.variance) == (expected.config.schedule, expected.config.variance)


REFUSED = {
    "center_input_sample": ({"center_input_sample": True}, "center_input_sample=True"),
    "norm of the middle": (
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None}, "attn_norm_num_groups=None"
    ),
    "no attention in the middle": ({"add_attention": False}, "add_attention=False"),
    "fourier": ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
    "types": ({**levels("D", "A"), "down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
    "one way alone": ({"up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"]}, "same levels"),
    "sizes": ({"sample_size": [16, 16, 16]}, "sample_size must be a number or"),
    "activation": ({"act_fn": "gelu"}, "act_fn='gelu'"),
    "text for a number": ({"layers_per_block": "2"}, "layers_per_block=2 is of another type"),
    "yes for a number": ({"norm_num_groups": True}, "norm_num_groups=True is of another type"),
    "null": ({"in_channels": None}, "in_channels=None is of another type"),
    "many blocks": ({"layers_per_block": 60_000}, "more blocks than"),
    "wide": ({"block_out_channels": [32_768, 32_768, 32_768]}, "which this network does not have"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_our_network_is_not_is_refused_with_its_field(tmp_path, name):
    folder = save_pipeline(random_network("paper"), tmp_path / "pipeline")
    changes, message = REFUSED[name]
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=message):
        loaded(folder)
