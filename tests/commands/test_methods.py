"""The commands with each method, loss, prediction and reverse variance: trained, continued, sampled and scored."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuse.data.datasets import digits
from diffuse.data.images import to_float
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.schedules import TableSchedule
from diffuse.mathematics.tables import linear
from diffuse.runs.analytic import analytic
from diffuse.runs.trained import load
from diffuse.system.errors import UsageError, UserError
from diffuse.system.randomness import ImageNoise, generator
from diffuse.training.trainer import NotFinite
from tests.support.commands import TINY, config
from tests.support.comparing import assert_same, newest, read
from tests.support.running import sampled, scored, trained, trainer_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def hybrid_run(tmp_path_factory) -> Path:
    """A finished training with a learned variance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("hybrid"))
        return trained("hybrid", "loss=hybrid", "steps=20").absolute()


@pytest.mark.parametrize(
    "words",
    [
        ["method=improved_ddpm"],
        ["method=score_sde"],
        ["method=ncsn"],
        ["method=edm"],
        ["method=flow"],
        ["prediction=mean", "device.precision=bfloat16"],
        ["prediction=v", "schedule.zero_terminal_snr=true", "weight=min_snr"],
        ["prediction=x0", "weight=p2", "loss=hybrid"],
        ["loss=vlb", "times=importance", "times.history=1"],
        ["loss=vlb", "variance=fixed_small", "dataset=gaussian", "dataset.train_count=64"],
    ],
    ids=lambda words: "-".join(words).replace("=", "_"),
)
def test_every_method_is_trained_sampled_and_scored(words):
    """From one end to the other, with finite numbers and images that are not all alike."""
    run = trained("r", *words)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(loss) for loss in losses)
    drawn = sampled(run, "sampler=ddpm").astype(float)
    assert np.isfinite(drawn).all()
    assert drawn.std() > 0
    bits = scored(run, "ode.solver=heun", "ode.steps=4")["bits_per_dim"]
    assert math.isfinite(bits["bound"]["total"])
    assert math.isfinite(bits["ode"]["total"])


@pytest.mark.parametrize("sampler", ["predictor_corrector", "annealed_langevin"])
def test_langevin_samplers_count_their_evaluations(tiny_run, sampler):
    sampled(tiny_run, f"name={sampler}", f"sampler={sampler}")
    facts = json.loads((tiny_run / "samples" / sampler / "samples.json").read_text())
    assert facts["sampler"]["steps"] == 4
    assert facts["network_calls"] == {"predictor_corrector": 4 * 2, "annealed_langevin": 4 * 5 + 1}[sampler]


def test_the_grid_is_that_of_the_runs_method_unless_it_is_typed():
    """method=edm trains and draws its grids on Karras et al.'s times, and so do sample and eval."""
    run = trained("edm", "method=edm")
    for name, words, spacing in (("its", [], "karras"), ("typed", ["sampler.spacing=to_zero"], "to_zero")):
        sampled(run, f"name={name}", "sampler=ddim", *words)
        made = json.loads((run / "samples" / name / "samples.json").read_text())
        assert made["sampler"]["spacing"] == spacing
    drawn = scored(run, "metrics=[is]", "features=classifier", "sampler.steps=2", "n=10")
    assert drawn["sample_protocol"]["samples"]["sampler"]["spacing"] == "karras"


def test_a_run_without_a_method_has_uniform_times(tiny_run):
    sampled(tiny_run, "name=plain", "sampler=ddim")
    made = json.loads((tiny_run / "samples" / "plain" / "samples.json").read_text())
    assert made["sampler"]["spacing"] == "uniform"


def test_reverse_diffusion_has_no_variance_to_choose(tiny_run):
    words = ["sampler=predictor_corrector", "sampler.predictor=reverse_diffusion"]
    assert sampled(tiny_run, "name=reverse", *words).dtype == np.uint8
    with pytest.raises(UsageError, match=r"sampler\.variance is of sampler\.predictor=ancestral"):
        sampled(tiny_run, "name=refused", *words, "sampler.variance=fixed_small")


def test_reverse_diffusion_estimates_no_variance(caplog):
    run = trained("a", "variance=analytic")
    words = ["sampler=predictor_corrector", "sampler.predictor=reverse_diffusion"]
    sampled(run, "name=s", *words)
    assert not (run / "analytic").exists()
    assert json.loads((run / "samples" / "s" / "samples.json").read_text())["sampler"]["variance"] is None


def test_langevin_dynamics_does_not_start_where_alpha_is_zero():
    run = trained("r", "method=flow")
    with pytest.raises(UsageError, match="sampler: schedule must have alpha > 0"):
        sampled(run, "sampler=annealed_langevin")


@pytest.mark.parametrize(
    "words",
    [["loss=hybrid", "times=importance", "times.history=2", "schedule=cosine", "schedule.levels=4"], ["method=edm"]],
    ids=["importance", "edm"],
)
def test_a_resumed_run_is_the_same_to_the_last_bit(words):
    """What the levels' losses were is part of what a checkpoint must remember."""
    options = [*words, "optim.decay=none", "batch_size=16"]
    whole = trained("whole", "steps=9", *options)
    parts = trained("parts", "steps=5", *options)
    trained("parts", "steps=9", *options)
    assert_same(newest(whole), newest(parts))
    if "times=importance" in words:
        assert (newest(whole)["times"]["seen"][1:] >= 2).all()


def test_betas_of_a_file_are_noted_down(tmp_path):
    """The checkpoint needs no file any more, and the record means the same from any folder."""
    betas = np.linspace(0.01, 0.3, 20)
    np.savetxt("betas.txt", betas)
    run = trained("r", "schedule=betas", "schedule.path=betas.txt")
    Path("betas.txt").unlink()
    schedule = load(str(run)).schedule
    assert isinstance(schedule, TableSchedule)
    np.testing.assert_allclose(schedule.beta[1:], betas, rtol=1e-12)
    with pytest.raises(UsageError, match=r"schedule.path is .*betas.txt, which is not a list of numbers"):
        trained("r", "schedule=betas", "schedule.path=betas.txt")


def test_a_run_samples_and_scores_with_its_own_variance(hybrid_run, tiny_run):
    assert scored(hybrid_run, "metrics=[bound]")["protocol"]["bound"]["variance"] == "learned"
    assert scored(tiny_run, "metrics=[bound]")["protocol"]["bound"]["variance"] == "fixed_large"
    own, other = (sampled(hybrid_run, f"name={name}", "sampler=ddpm", *words)
                  for name, words in (("own", []), ("other", ["sampler.variance=fixed_large"])))  # fmt: skip
    assert (own != other).any()
    facts = json.loads((hybrid_run / "samples/own/samples.json").read_text())
    assert facts["sampler"]["variance"] == "learned"


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_a_network_that_learned_no_variance_has_none(tiny_run, command):
    with pytest.raises(
        UsageError, match="variance=learned needs a run trained with variance=learned; this one has fixed"
    ):
        if command == "sample":
            sampled(tiny_run, "sampler=ddpm", "sampler.variance=learned")
        else:
            scored(tiny_run, "variance=learned")


def test_the_analytic_variance_is_estimated_once_from_the_training_images(tiny_run):
    """In the run folder, named by the checkpoint, level by level; the core's formula in a few lines beside it."""
    scored(tiny_run, "metrics=[bound]", "variance=analytic", "levels=3")
    (path,) = (tiny_run / "analytic").iterdir()
    trained = load(str(tiny_run))
    assert path.stem == f"{trained.sha256[:16]}_ema"
    known = json.loads(path.read_text())["eps_squared"]
    assert set(known) == {"1000.0", "501.0", "1.0"}
    rows = np.sort(generator("analytic", "1000.0").permutation(1438)[:256])
    x0 = to_float(torch.from_numpy(digits().train.images[rows]))
    noise = ImageNoise(0, "analytic 1000.0", rows.tolist())(x0)
    alpha, sigma = linear().alpha_sigma(torch.tensor(1000.0).double())
    eps = trained.net(alpha * x0 + sigma * noise, torch.full((256,), 999.0), None)
    assert known["1000.0"] == pytest.approx(1 + (eps.square() - noise.square()).mean().item(), rel=1e-4)
    path.write_text(path.read_text().replace(str(known["1.0"]), "0.125"))
    scored(tiny_run, "metrics=[bound]", "variance=analytic", "levels=2")
    assert json.loads(path.read_text())["eps_squared"]["1.0"] == 0.125, "what is known was estimated again"
    before = path.read_text()
    sampled(tiny_run, "name=analytic", "sampler=ddpm", "sampler.variance=analytic", "sampler.steps=3")
    assert path.read_text() == before


def test_each_weights_of_a_checkpoint_have_estimates_of_their_own(tiny_run):
    ema, model = (analytic(load(str(tiny_run), weights=weights), [500.0]) for weights in ("ema", "model"))
    assert ema.eps_squared[500.0] != model.eps_squared[500.0]


def test_sampling_needs_the_training_images_only_for_what_is_not_known(tmp_path):
    data = Path("data")
    data.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(data / "mine.npz", images)
    run = trained("r", "dataset=npz", f"dataset.path={data}/mine.npz", "unet=tiny", f"data_dir={tmp_path}/d", *TINY)
    options = ["sampler=ddpm", "sampler.variance=analytic"]
    sampled(run, "name=a", *options)
    (data / "mine.npz").unlink()
    sampled(run, "name=b", *options)
    with pytest.raises(UserError, match="mine.npz"):
        sampled(run, "name=c", *options, "sampler.steps=5")


def test_the_analytic_variance_is_no_choice_for_the_grids_of_a_training():
    with pytest.raises(UsageError, match="analytic is estimated when training is done"):
        trained("r", "variance=analytic", "sampler=ddpm")
    run = trained("ok", "variance=analytic")
    assert scored(run, "metrics=[bound]")["protocol"]["bound"]["variance"] == "analytic"


def test_the_mean_is_predicted_in_float32():
    """An error of the mean is an error of x0 some thousands of times as large."""
    run = trained("r", "prediction=mean", "device.precision=bfloat16")
    one, other = (newest(trained(f"{name}", "prediction=mean", f"device.precision={precision}"))
                  for name, precision in (("a", "bfloat16"), ("b", "float32")))  # fmt: skip
    assert_same(one["model"], other["model"])
    assert read(run / "checkpoints/last.pt")["config"]["device"]["precision"] == "bfloat16"


def test_an_x0_network_has_an_analytic_bound():
    """Its eps is too large at small t, so the estimate is clipped to 0; L_0 needs a variance all the same."""
    run = trained("r", "prediction=x0")
    assert math.isfinite(scored(run, "metrics=[bound]", "variance=analytic")["bits_per_dim"]["bound"]["total"])


def test_the_analytic_variance_is_not_estimated_from_other_images(tmp_path):
    """It would be kept under the network's name, and spoil every later score."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez("mine.npz", images)
    run = trained("r", "dataset=npz", "dataset.path=mine.npz", "unet=tiny", f"data_dir={tmp_path}/d", *TINY)
    Path("mine.npz").rename("moved.npz")
    options = ["sampler=ddpm", "sampler.variance=analytic"]
    sampled(run, "name=a", "dataset.path=moved.npz", *options)
    np.savez("moved.npz", 255 - images)
    with pytest.raises(UserError, match="analytic is estimated from the training images, and those of .* have changed"):
        sampled(run, "name=b", "dataset.path=moved.npz", "sampler.steps=5", *options)


def test_a_failed_step_teaches_importance_sampling_nothing():
    """Where the device is asynchronous, as it is made to believe here, failure.pt has the levels that failed."""
    typed = config(
        "train", *TINY, "times=importance", "times.history=1", "schedule=cosine", "schedule.levels=4", "optim.lr=1e-3"
    )
    trainer = trainer_of(typed)
    trainer.device = type("Asynchronous", (type(trainer.device),), {"asynchronous": True})("cpu", "float32")
    for _ in range(3):
        trainer.advance()
    expected = trainer.batch(trainer.step)
    with torch.no_grad():
        saved = trainer.net.head.bias.clone()
        trainer.net.head.bias.fill_(math.nan)
    trainer.advance()
    with torch.no_grad():
        trainer.net.head.bias.copy_(saved)
    for _ in range(2):
        trainer.advance()
    with pytest.raises(NotFinite) as failed:
        trainer.refuse_failure()
    made_of = trainer.failure(failed.value.step)["failure"]
    assert_same([expected.t, expected.importance], [made_of["t"], made_of["importance"]])


def test_a_table_shorter_than_the_grids_of_a_training_is_refused_by_its_name():
    """Nobody typed sampler.steps, so the message says what it has to do with training."""
    with pytest.raises(UsageError, match="sampler.steps=3 for the sample grids of the training .* set sampler.steps=2"):
        trained("r", "schedule=cosine", "schedule.levels=2")


def test_targets_that_grow_with_the_noise_are_refused():
    with pytest.raises(UsageError, match="prediction=v has targets alpha eps - sigma x0, and sigma reaches 100"):
        trained("r", "schedule=ve", "prediction=v")


def test_a_training_step_counts_each_loss_with_the_weight_of_its_level():
    """The gradient of importance sampling, computed on a copy of the network; without the weights it is biased."""
    trainer = trainer_of(
        config(
            "train",
            *TINY,
            "times=importance",
            "times.history=1",
            "schedule=cosine",
            "schedule.levels=4",
            "optim.clip=1e9",
        )
    )
    for _ in range(3):
        trainer.advance()
    trainer.report()
    x0, t, weights, noise, *_ = trainer.batch(trainer.step)
    assert weights.min() < 0.9 < 1.1 < weights.max()
    net = copy.deepcopy(trainer.net)
    losses = trainer.loss.func(Denoiser(net, trainer.loss.args[0].schedule), x0, t, noise, None)
    (weights * losses).mean().backward()
    expected = torch.nn.utils.clip_grad_norm_(net.parameters(), torch.inf).item()
    trainer.advance()
    reported = trainer.report()
    assert reported["grad_norm"] == pytest.approx(expected, rel=1e-5)
    assert reported["loss"] == pytest.approx(((weights * losses).sum() / weights.sum()).item(), rel=1e-5)
