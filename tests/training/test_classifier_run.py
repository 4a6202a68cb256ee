"""Training a classifier of noisy images: what it learns, what is shown of it, and going on after a stop."""

from pathlib import Path

import pytest
import torch

from diffuse.commands import train
from diffuse.networks.classifier import Classifier
from diffuse.runs.trained import load
from diffuse.system.device import Device
from diffuse.training.failure import replay
from diffuse.training.shown import AccuracyCurve
from tests.support.commands import TINY, config, diffuse, output
from tests.support.comparing import (
    assert_same,
    assert_tensorboard_has_every_step_once,
    metrics,
    newest,
    without_clock,
)
from tests.support.running import forget_from

LEVELS = ["0.1", "0.2", "0.5", "1", "2", "5", "10"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(name: str, *overrides: str) -> Path:
    train.run(config("train", *TINY, "method=classifier", f"name={name}", *overrides), output())
    return Path("outputs") / name


def accuracies(run: Path) -> dict[int, list[float]]:
    lines = [line for line in metrics(run) if "eval/accuracy_1" in line]
    return {line["step"]: [line[f"eval/accuracy_{level}"] for level in LEVELS] for line in lines}


def test_accuracy_comes_with_every_picture_in_both_logs(caplog):
    run = trained("a", "steps=7")
    assert list(accuracies(run)) == [3, 6, 7]
    assert_tensorboard_has_every_step_once(run, "accuracy")
    assert sorted(path.name for path in (run / "images").iterdir()) == [
        "accuracy.gif",
        "forward_process.png",
        *(f"step_{step:08d}.png" for step in (3, 6, 7)),
    ]
    said = caplog.text
    assert f"done, accuracy_0.1 {accuracies(run)[7][0]:.4f}, accuracy_0.2" in said
    assert "accuracy: outputs/a/images/step_00000007.png" in said
    assert "next: diffuse sample ckpt=RUN guidance=classifier guidance.ckpt=outputs/a, with a RUN on the same" in said


def test_it_learns_to_tell_digits_apart_where_there_is_little_noise():
    """In 300 steps a small network is right about most digits; where the noise is ten times the image it guesses."""
    words = ["unet.channels=16", "unet.channel_mult=[1,2]", "optim.lr=3e-3", "steps=300", "images.every=300"]
    run = trained("b", *words, "batch_size=64", "log.every=100", "checkpoint.every=300", "ema.decay=0.98")
    (found,) = accuracies(run).values()
    assert found[0] > 0.85
    assert found[-1] < 0.35
    assert found == pytest.approx(sorted(found, reverse=True), abs=0.05)


def curve() -> AccuracyCurve:
    shown = train.build_training(config("train", *TINY, "method=classifier")).shown
    assert isinstance(shown, AccuracyCurve)
    return shown


def test_accuracy_is_the_share_of_test_images_that_are_named_rightly():
    """By a network that always says 3, and by one that says what the mean of the clean image suggests."""
    shown = curve()
    x0, noise, y = shown.images
    test = shown.data.test
    assert len(x0) == len(test.images) == 359
    assert len({image.numpy().tobytes() for image in noise}) == 359
    assert sorted(y.tolist()) == sorted(test.labels.tolist())
    shown.classifier.net = lambda x, time: torch.nn.functional.one_hot(torch.full([len(x)], 3), 10).float()
    picture, values = shown.show(lambda found: None)
    assert set(values.values()) == {float((test.labels == 3).mean())}
    assert picture.shape == (3, 400, 600)
    asked = []
    shown.classifier.net = lambda x, time: asked.append((x, time)) or torch.zeros(len(x), 10)
    shown.accuracy(shown.times[2.0], asked.append)
    x, time = asked[0]
    alpha, sigma = (float(each) for each in shown.classifier.schedule.alpha_sigma(time[:1].double() + 1))
    assert sigma / alpha == pytest.approx(2, rel=1e-5)
    torch.testing.assert_close(x, alpha * x0[:100] + sigma * noise[:100], rtol=1e-4, atol=1e-5)


def test_levels_that_a_schedule_has_not_are_left_out():
    words = ["schedule=ve", "schedule.sigma_min=0.3", "schedule.sigma_max=3"]
    typed = config("train", *TINY, "method=classifier", *words)
    assert list(train.build_training(typed).shown.times) == [0.5, 1, 2]


def test_the_average_is_shown_and_the_curve_is_the_same_each_time():
    training = train.build_training(config("train", *TINY, "method=classifier"))
    for _ in range(2):
        training.trainer.advance()
    _, before = training.shown.show(lambda found: None)
    with torch.no_grad():
        training.trainer.net.pool.out.bias[3] = 100.0
    assert training.shown.show(lambda found: None).values == before
    with torch.no_grad():
        training.trainer.ema.net.pool.out.bias[3] = 100.0
    assert set(training.shown.show(lambda found: None).values.values()) == {
        float((training.trainer.data.test.labels == 3).mean())
    }


@pytest.mark.parametrize("seen", [[], ["times=importance"]], ids=["uniform", "importance"])
def test_a_killed_training_ends_as_if_it_had_not_been(seen):
    whole, parts = trained("whole", *seen), trained("parts", *seen)
    forget_from(parts, 6)
    trained("parts", *seen)
    assert_same(newest(whole), newest(parts))
    assert without_clock(metrics(whole)) == without_clock(metrics(parts))
    for step in (3, 6):
        name = f"images/step_{step:08d}.png"
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert_tensorboard_has_every_step_once(parts, "accuracy")


def test_a_picture_that_is_missing_is_drawn_when_the_run_goes_on():
    run = trained("a")
    picture = run / "images" / "step_00000006.png"
    before = picture.read_bytes()
    picture.unlink()
    trained("a")
    assert picture.read_bytes() == before


def test_what_is_saved_is_the_network():
    run = trained("a")
    network = load(str(run), Device("cpu", "float32"))
    assert isinstance(network.net, Classifier)
    classifier = network.classifier()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    log_p = classifier(x, torch.tensor(40.0))
    assert log_p.shape == (3, 10)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(3))
    alone = network.net(x, torch.full([3], 39.0)).log_softmax(1)
    torch.testing.assert_close(log_p, alone, rtol=1e-4, atol=1e-5)


def test_a_step_that_failed_is_computed_again():
    training = train.build_training(config("train", *TINY, "method=classifier"))
    trainer = training.trainer
    train.keep_failure(training, Path(), 0)
    again = replay("failure.pt")
    batch = trainer.batch(0)
    torch.testing.assert_close(again.losses, trainer.loss(batch.x0, batch.t, batch.noise, batch.y).detach())


def test_runs_are_listed_and_compared(tmp_path):
    trained("a")
    trained("b", "optim.lr=2e-3")
    listed = diffuse("ls", cwd=tmp_path)
    assert listed.returncode == 0
    assert "accuracy_0.1" in listed.stdout
    assert "optim.lr" in diffuse("diff", "a", "b", cwd=tmp_path).stdout


def test_a_sweep_says_which_classifier_is_best(tmp_path):
    done = diffuse("train", "-m", "method=classifier", *TINY, "optim.lr=1e-4,3e-2", "name=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (path.parent for path in Path("outputs").glob("**/sweep.csv"))
    assert "accuracy_0.1" in (folder / "sweep.csv").read_text()
