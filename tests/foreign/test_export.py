"""Exports from outside: what diffusers loads computes and draws the same, and what comes back has the same bits."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from diffuse.mathematics.samplers.ddim import ddim
from diffuse.mathematics.spacings import SPACINGS, time_grid
from diffuse.runs.sampler import Sampler
from diffuse.runs.trained import TrainedNetwork, load
from diffuse.system.device import Device
from tests.support.commands import TINY, config, diffuse
from tests.support.diffusers_nets import in_float64, ours_in_float64, random_network, save_pipeline

ADM = [
    "unet.embedding=cos_sin", "unet.padding=symmetric", "unet.norm_eps=1e-5", "unet.scale_shift=true",
]  # fmt: skip
RUNS = {
    "paper": ["unet.channel_mult=[1,2]"],
    "adm": [*ADM, "unet.resample=residual", "unet.head_channels=4", "method=improved_ddpm", "class_conditional=true"],
    "v, zero terminal": [
        "prediction=v",
        "schedule=linear",
        "schedule.zero_terminal_snr=true",
        "unet.attention=[8,4]",
        "sampler.clip=dynamic",
        "sampler.percentile=0.8",
    ],
    "quadratic, heads": [
        "schedule=quadratic", "unet.heads=2", "unet.padding=symmetric", "variance=fixed_small", "sampler.clip=false",
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """A run of six steps, whose weights are then random."""
    home = tmp_path_factory.mktemp("export")
    done = diffuse("train", *TINY, *RUNS[request.param], "name=run", cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def loaded(path) -> TrainedNetwork:
    return load(str(path), Device("cpu", "float32"))


def exported(home, to: str, *words: str):
    shutil.rmtree(home / "outputs/run/export" / to, ignore_errors=True)
    done = diffuse("export", "ckpt=outputs/run", f"to={to}", *words, cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "outputs/run/export" / to


def test_diffusers_computes_and_draws_what_we_do(run):
    ours = loaded(run / "outputs/run")
    folder = exported(run, "diffusers")
    pipeline = DDPMPipeline.from_pretrained(folder)
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    theirs = in_float64(pipeline.unet.eval())
    net = ours_in_float64(ours.net)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([1, 9]) if ours.config.class_conditional else None
    t = torch.tensor([3.0, 912.0], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x, t, y), theirs(x, t, y).sample, rtol=1e-10, atol=1e-10)
    # With other times its steps do not end where the next one begins.
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    alpha_bar = ours.schedule.alpha_bar[1:]
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), alpha_bar, rtol=1e-4, atol=1e-7)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = alpha_bar, torch.tensor(1.0).double()
    denoiser = ours.formulas.denoiser_of(net)
    clips = ours.config.sampler["clip"] is not False
    assert scheduler.config.clip_sample is clips
    grid = torch.tensor([*(scheduler.timesteps + 1), 0], dtype=torch.float64)
    assert grid[0] == 1000
    sampler = Sampler({**ours.config.sampler, "steps": 2}, ours.formulas, ours.kind, [])
    *_, found = ddim(sampler.wrap(denoiser), x, grid, y)
    with torch.no_grad():
        for step in scheduler.timesteps:
            predicted = theirs(x, step.expand(2), y).sample[:, :1]
            x = scheduler.step(predicted, step, x, use_clipped_model_output=clips).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_the_card_says_how_to_draw_images_and_that_draws_them(run):
    folder = exported(run, "diffusers")
    text = (folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert "1000" in code
    ours = loaded(run / "outputs/run")
    assert ("class_labels" in code) is ours.config.class_conditional
    names: dict = {}
    exec(code.replace("FOLDER", str(folder)).replace("1000", "3"), names)
    assert len(names["images"]) == 4


@pytest.mark.parametrize("spacing", ["uniform", "to_zero", "leading", "karras"])
def test_fewer_steps_have_the_times_of_the_run(tmp_path, spacing):
    """Where diffusers has such a spacing; the times of `uniform` otherwise."""
    words = [*TINY, f"sampler.spacing={spacing}", "sampler.steps=4", "name=run"]
    assert diffuse("train", *words, cwd=tmp_path).returncode == 0
    found = DDPMScheduler.from_pretrained(exported(tmp_path, "diffusers") / "scheduler")
    schedule = loaded(tmp_path / "outputs/run").schedule
    for steps in (10, 40, 1000):
        found.set_timesteps(steps)
        expected = time_grid(schedule, steps, SPACINGS["uniform" if spacing == "karras" else spacing])
        assert [*(found.timesteps + 1).tolist(), 0] == expected.tolist()


def test_weights_of_another_program_keep_their_origin(tmp_path):
    """Through our own file and on."""
    net = random_network("paper")
    save_pipeline(net, tmp_path / "theirs")
    for line in (
        ["ckpt=theirs", "to=safetensors", "out=ours"],
        ["ckpt=ours/model.safetensors", "out=again"],
    ):
        done = diffuse("export", *line, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    sha256 = hashlib.sha256((tmp_path / "theirs/unet/diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    for name in ("ours", "again"):
        card = (tmp_path / name / "README.md").read_text()
        assert f"diffusers weights: diffusion_pytorch_model.safetensors (SHA-256 {sha256})" in card
        assert "as their file has them" in card
    found = load_file(tmp_path / "again/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())


def test_round_trips_are_bit_for_bit(run):
    """Through diffusers, which loads the export and saves it again, and through our own file."""
    expected = loaded(run / "outputs/run")
    exported(run, "diffusers", "out=back")
    UNet2DModel.from_pretrained(run / "back/unet").save_pretrained(run / "again/unet")
    (run / "again/scheduler").mkdir()
    DDPMScheduler.from_pretrained(run / "back/scheduler").save_pretrained(run / "again/scheduler")
    alone = exported(run, "safetensors") / "model.safetensors"
    for path in (run / "back", run / "again", alone):
        found = loaded(path)
        assert_same_state(found, expected)
        assert found.config.variance == expected.config.variance
        assert found.config.prediction == expected.config.prediction
        assert clipping(found) == clipping(expected)
        table = found.schedule.alpha_bar
        torch.testing.assert_close(table, expected.schedule.alpha_bar, rtol=1e-12, atol=0)
    assert loaded(alone).config == expected.config


def clipping(network: TrainedNetwork) -> tuple[bool | str, float | None]:
    """How the predicted x0 is clipped; null is yes for images."""
    clip = network.config.sampler["clip"]
    return True if clip is None else clip, network.config.sampler["percentile"]


def assert_same_state(found: TrainedNetwork, expected: TrainedNetwork) -> None:
    states = [network.net.state_dict() for network in (found, expected)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_raw_weights_and_a_card_that_says_so(tmp_path):
    assert diffuse("train", *TINY, "name=run", "ema.decay=0.9", cwd=tmp_path).returncode == 0
    words = ["ckpt=outputs/run", "n=20", "metrics=[fid]", "features=classifier", "sampler=ddim", "sampler.steps=2"]
    for more in (["name=one"], ["sampler.eta=0.5", "sampler.eps_scale=1.01", "name=two"]):
        assert diffuse("eval", *words, *more, "ema.length=0", "device=cpu", cwd=tmp_path).returncode == 0
    bound = ["metrics=[bound]", "levels=3", "n=4", "ema.length=0", "device=cpu", "name=three"]
    assert diffuse("eval", "ckpt=outputs/run", *bound, cwd=tmp_path).returncode == 0
    three = json.loads((tmp_path / "outputs/run/eval/three/eval.json").read_text())
    assert three["protocol"]["weights"] == "model"
    folder = exported(tmp_path, "safetensors", "ema.length=0", "license=mit")
    stored = torch.load(tmp_path / "outputs/run/checkpoints/last.pt", weights_only=True)
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in stored["model"].items())
    assert not all(torch.equal(found[name], value) for name, value in stored["ema"].items())
    card = (folder / "README.md").read_text()
    for said in (
        "as trained, not averaged",
        '"mit"',
        "| fid_classifier |",
        "digits:train",
        "`diffuse train ",
        "6 of 16 images",
        "ddim, eta 0.0, steps 2,",
        "ddim, eta 0.5, steps 2,",
        "eps_scale [1.01, 1.01]",
        "| 4 | test split |",
    ):
        assert said in card
    exported(tmp_path, "diffusers")
    assert "fid_classifier" not in (tmp_path / "outputs/run/export/diffusers/README.md").read_text()  # of raw weights


WIDE = ["unet.channels=32", "unet.groups=32", *ADM, "schedule=cosine", "schedule.levels=400", "unet.time_scale=2.5"]


def test_improved_diffusions_file_comes_back(tmp_path):
    words = [word for word in TINY if not word.startswith(("unet.channels", "unet.groups"))]
    assert diffuse("train", *words, *WIDE, "unet.heads=4", "name=run", cwd=tmp_path).returncode == 0
    folder = exported(tmp_path, "improved_diffusion")
    flags = (folder / "flags.txt").read_text()
    for flag in (
        "--image_size 8",
        "--num_heads 4",
        "--rescale_timesteps True",
        "--diffusion_steps 400",
        "scripts do not build",
    ):
        assert flag in flags
    found = load(
        str(folder / "model.pt"),
        Device("cpu", "float32"),
        foreign=config(
            "sample", "ckpt=x", "foreign.format=improved_diffusion", "foreign.image_size=8", "foreign.levels=400",
            "foreign.schedule=cosine",
        ).foreign,
    )  # fmt: skip
    expected = loaded(tmp_path / "outputs/run")
    assert_same_state(found, expected)
    assert torch.equal(found.schedule.alpha_bar, expected.schedule.alpha_bar)
    assert found.config.unet["time_scale"] == 2.5


SCRIPTS = [
    "unet.channels=64",
    "unet.groups=32",
    "unet.heads=4",
    "unet.embedding=cos_sin",
    "unet.padding=symmetric",
    "unet.norm_eps=1e-5",
]


def test_flags_say_what_the_scripts_would_not_build(tmp_path):
    words = [word for word in TINY if not word.startswith(("unet.channels", "unet.groups"))]
    labelled = [*SCRIPTS, "unet.attention=[]", "class_conditional=true", "label_dropout=0"]
    assert diffuse("train", *words, *labelled, "name=run", cwd=tmp_path).returncode == 0
    line, note = (exported(tmp_path, "improved_diffusion") / "flags.txt").read_text().splitlines()
    assert "--attention_resolutions 16 " in line and "--class_cond True" in line
    assert "channel_mult=" in note and "1 channels" in note and "10 rows of labels (there 1000)" in note


REFUSED = {
    "fourier": (["unet.embedding=fourier"], "diffusers", "unet.embedding=fourier"),
    "flow": (["method=flow"], "diffusers", "prediction=flow"),
    "continuous": (["schedule=vp"], "diffusers", "schedule=VP"),
    "time": (["unet.time_scale=0.5"], "diffusers", "unet.time_scale=0.5"),
    "heads": (["unet.heads=2", "unet.channel_mult=[1,2]", "unet.attention=[8,4]"], "diffusers", "unet.heads=2"),
    "stem": (["unet.stem_mult=2"], "diffusers", "unet.stem_mult=2"),
    "first level": (["unet.channel_mult=[2,2]"], "diffusers", "unet.channel_mult"),
    "classifier": (["method=classifier"], "diffusers", "is a classifier"),
    "paper": ([], "improved_diffusion", "unet.embedding=sin_cos"),
    "mean": (["prediction=mean", "loss=vlb"], "improved_diffusion", "prediction=mean (there eps, x0)"),
    "other ends": (["schedule.beta_end=0.03"], "improved_diffusion", "this table of betas, of schedule=linear"),
    "another cosine": (["schedule=cosine", "schedule.s=0.01"], "improved_diffusion", "of schedule=cosine (there"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_format_cannot_say_is_refused_in_words(tmp_path, name):
    words, to, message = REFUSED[name]
    assert diffuse("train", *TINY, *words, "name=run", cwd=tmp_path).returncode == 0
    done = diffuse("export", "ckpt=outputs/run", f"to={to}", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 4
    assert not list((tmp_path / "outputs/run").glob("export/*"))


def test_an_export_is_not_written_over(tmp_path):
    assert diffuse("train", *TINY, "name=run", cwd=tmp_path).returncode == 0
    before = exported(tmp_path, "diffusers")
    done = diffuse("export", "ckpt=outputs/run", cwd=tmp_path)
    assert done.returncode == 1
    assert "exists already" in done.stderr
    assert json.loads((before / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
