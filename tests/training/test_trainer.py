"""Training: what a step does, what a run leaves, and that continuing changes nothing."""

import copy
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffuse.commands import train
from diffuse.data.datasets import digits
from diffuse.runs.record import read_record
from diffuse.system.errors import Refused, UserError
from diffuse.system.pairwise import pairwise_sum
from diffuse.system.randomness import reseed
from diffuse.training.batches import batch_rows
from diffuse.training.learning_rate import learning_rate
from diffuse.training.trainer import Trainer
from tests.support.commands import TINY, config, output
from tests.support.comparing import (
    assert_runs_are_the_same,
    assert_same,
    assert_tensorboard_has_every_step_once,
    metrics,
    read,
    without_clock,
)
from tests.support.running import trainer_of


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(*overrides: str) -> Path:
    """Run `diffuse train` on a tiny network; the run folder."""
    typed = config("train", *TINY, *overrides)
    train.run(typed, output())
    return Path("outputs") / typed.name if typed.name else next(Path("outputs/digits-linear-tiny").iterdir())


def test_a_run_explains_itself():
    folder = trained("name=exp")
    assert sorted(path.name for path in folder.iterdir()) == [
        ".hydra", ".lock", "checkpoints", "config.yaml", "history.jsonl", "images", "metrics.jsonl", "tensorboard",
        "train.log",
    ]  # fmt: skip
    assert [line["step"] for line in metrics(folder)] == [2, 4, 6]
    assert sorted(path.name for path in (folder / "images").iterdir()) == [
        "forward_process.png", "samples.gif", "step_00000003.png", "step_00000006.png",
    ]  # fmt: skip
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "last.pt", "step_00000003.pt", "step_00000006.pt",
    ]  # fmt: skip
    assert (folder / "checkpoints" / "last.pt").samefile(folder / "checkpoints" / "step_00000006.pt")


def test_tensorboard_and_metrics_agree():
    folder = trained("name=exp")
    assert_tensorboard_has_every_step_once(folder)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert set(events.Tags()["images"]) == {"samples", "schedule/forward_process"}
    assert events.Tags()["tensors"] == ["config/text_summary"]


def test_a_continued_run_equals_one_that_was_never_interrupted():
    """With dropout, flips, EMA and decay on, the pictures in between and logs of unequal length."""
    options = ["unet.dropout=0.3", "dataset.flip=true", "optim.decay=cosine", "log.every=3"]
    options += ["checkpoint.every=2", "checkpoint.keep=9"]
    whole = trained("name=whole", "steps=7", *options)
    parts = trained("name=parts", "steps=7", *options)
    for left_over in [*(parts / "checkpoints").glob("step_*[67].pt"), parts / "checkpoints" / "last.pt"]:
        left_over.unlink()
    assert max((parts / "checkpoints").iterdir()).name == "step_00000004.pt"
    typed = config("train", *TINY, "name=parts", "steps=7", *options, f"resume={parts}")
    train.run(typed, output())
    assert_runs_are_the_same(whole, parts)
    assert "resumed from step 4" in (parts / "train.log").read_text()


def test_how_often_it_logs_and_draws_changes_no_weight():
    one = trained("name=one", "log.every=1", "images.every=1", "checkpoint.every=6")
    other = trained("name=other", "log.every=5", "images.every=6", "checkpoint.every=2")
    assert_same(*(read(folder / "checkpoints" / "step_00000006.pt")["ema"] for folder in (one, other)))


def test_the_seed_decides():
    first, same, other = (
        read(trained(f"name={name}", f"seed={seed}") / "checkpoints" / "step_00000006.pt")["model"]
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert_same(first, same)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_a_finished_run_says_so_and_writes_nothing(caplog):
    folder = trained("name=exp")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert train.run(config("train", *TINY, "name=exp", f"resume={folder}"), output()) == {
        "loss": metrics(folder)[-1]["loss"]
    }
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("change", ["optim.lr=0.5", "unet.dropout=0.1", "schedule=cosine", "seed=3"])
def test_a_run_cannot_continue_as_another_one(change):
    folder = trained("name=exp")
    key = change.split("=")[0]
    with pytest.raises(UserError, match=f"begun with another config.*{key}"):
        train.run(config("train", *TINY, "name=exp", f"resume={folder}", change), output())


def test_more_steps_only_where_no_decay_hangs_on_them():
    folder = trained("name=decaying")
    with pytest.raises(UserError, match="steps cannot change from 6 to 9"):
        train.run(config("train", *TINY, "name=decaying", f"resume={folder}", "steps=9"), output())
    with pytest.raises(UserError, match="steps cannot change from 6 to 3"):
        train.run(config("train", *TINY, "name=decaying", f"resume={folder}", "steps=3"), output())


def test_steps_that_were_added_are_remembered():
    """The record follows, so that continuing once more needs no typing."""
    folder = trained("name=flat", "optim.decay=none")
    train.run(config("train", *TINY, "name=flat", f"resume={folder}", "steps=9", "optim.decay=none"), output())
    assert read(folder / "checkpoints" / "last.pt")["step"] == 9
    assert read_record(folder).steps == 9
    assert read_record(folder).resume is None


def test_a_run_without_a_checkpoint_begins_again():
    """Killed before its first one: nothing later has been reported."""
    whole, parts = trained("name=whole"), trained("name=parts")
    for path in (parts / "checkpoints").iterdir():
        path.unlink()
    lines = (parts / "metrics.jsonl").read_text().splitlines(keepends=True)
    (parts / "metrics.jsonl").write_text(lines[0])
    train.run(config("train", *TINY, "name=parts", f"resume={parts}"), output())
    assert_same(*(read(folder / "checkpoints" / "last.pt")["model"] for folder in (whole, parts)))
    assert without_clock(metrics(whole)) == without_clock(metrics(parts))


def test_only_the_newest_checkpoints_are_kept():
    folder = trained("name=exp", "checkpoint.every=1", "checkpoint.keep=2")
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step*"))
    assert kept == ["step_00000005.pt", "step_00000006.pt"]


def test_a_checkpoint_holds_plain_values_only():
    content = torch.load(trained("name=exp") / "checkpoints" / "last.pt", weights_only=True)
    assert content["config"]["unet"]["channel_mult"] == [1, 1]
    assert type(content["config"]["unet"]) is dict
    assert content["format"] == 4


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved():
    """Checkpoints come every step here and metrics only at the end: none of those saved may hold such weights."""
    with pytest.raises(UserError, match="the loss or gradient of step .* is NaN or infinite"):
        trained("name=exp", "optim.lr=1e30", "optim.clip=1e30", "steps=50", "log.every=50", "checkpoint.every=1")
    assert "ERROR the loss or gradient of step" in Path("outputs/exp/train.log").read_text()
    for path in Path("outputs/exp/checkpoints").glob("step_*.pt"):
        assert all(weight.isfinite().all() for weight in read(path)["model"].values())


def test_training_learns():
    """On digits the loss of a tiny network falls well below 1, that of knowing nothing."""
    folder = trained("name=exp", "steps=120", "optim.lr=5e-3", "images.every=500", "log.every=10", "optim.decay=none")
    losses = [line["loss"] for line in metrics(folder)]
    assert losses[-1] < 0.3 < 0.6 < losses[0], losses


def test_losses_are_reported_by_quartile_of_t():
    """Levels 1-250, 251-500, 501-750 and 751-1000, each with the mean of its own losses."""
    trainer = trainer_of(config("train", *TINY))

    def add_up(losses: list[float], t: list[int], norm: float) -> None:
        ones = torch.ones(len(t))
        trainer.sums.add(torch.tensor(t) / 1000, torch.tensor(losses), ones, torch.tensor(norm), torch.tensor(True))

    add_up([1.0, 3.0, 5.0, 7.0], [1, 250, 251, 1000], 2.0)
    add_up([8.0], [751], 4.0)
    values = trainer.report()
    quartiles = {number: values.get(f"loss_t_quartile/{number}") for number in range(1, 5)}
    assert quartiles == {1: 2.0, 2: 5.0, 3: None, 4: 7.5}
    assert values["loss"] == pytest.approx(24 / 5)
    assert values["grad_norm"] == 3.0
    add_up([1.0], [600], 1.0)
    assert trainer.report()["loss"] == 1.0


def test_a_step_is_the_papers_algorithm_with_adamw_clipping_and_ema():
    """Three steps against a plain loop: same weights, same average."""
    options = [
        "optim.clip=0.05",
        "optim.betas=[0.8,0.95]",
        "optim.weight_decay=0.3",
        "optim.decay=linear",
        "ema.decay=0.5",
        "optim.lr=0.01",
    ]
    trainer = trainer_of(config("train", *TINY, *options))
    net = copy.deepcopy(trainer.net)
    average = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.8, 0.95), weight_decay=0.3)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for step in range(3):
        reseed(0, "train", step)
        x0 = torch.from_numpy(digits().train.images[batch_rows(0, step, 16, 1438)]).float() / 127.5 - 1
        t = torch.randint(1, 1001, (16,))
        noise = torch.randn_like(x0)
        signal = alpha_bar[t - 1].reshape(-1, 1, 1, 1)
        x_t = (signal.sqrt() * x0 + (1 - signal).sqrt() * noise).float()
        torch.nn.functional.mse_loss(net(x_t, (t - 1).float()), noise).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)
        optimizer.param_groups[0]["lr"] = 0.01 * min(1, (step + 1) / 2) * (1 - step / 6)
        optimizer.step()
        optimizer.zero_grad()
        d = min(0.5, (1 + step) / (10 + step))
        for name, weight in net.named_parameters():
            average[name] = d * average[name] + (1 - d) * weight.detach()
        trainer.advance()
        assert trainer.report()["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
    for name, weight in trainer.net.named_parameters():
        torch.testing.assert_close(weight, dict(net.named_parameters())[name], rtol=1e-3, atol=1e-5)
    saved = trainer.state()["ema"]
    for name, weight in average.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-3, atol=1e-5)


def test_without_a_step_there_is_no_mean():
    report = trainer_of(config("train", *TINY)).report()
    assert all(math.isnan(report[name]) for name in ("loss", "grad_norm"))


def test_rates_that_differ_between_parameters_are_refused():
    """One rate is set for all of them, so that theirs would be lost without a word."""
    trainer = trainer_of(config("train", *TINY))
    first, *others = trainer.net.parameters()
    optimizer = torch.optim.AdamW([{"params": [first], "lr": 1e-3}, {"params": others}], lr=1e-4, fused=True)
    with pytest.raises(Refused, match="optimizer must have one learning rate"):
        Trainer(trainer.net, trainer.loss, trainer.data, trainer.time_sampling, optimizer, trainer.ema)


def test_grids_are_drawn_from_the_average():
    training = train.build_training(config("train", *TINY))
    trainer, drawing = training.trainer, training.shown.drawing
    for _ in range(2):
        trainer.advance()
    before = drawing.draw(range(4))
    with torch.no_grad():
        trainer.net.head.bias.fill_(5.0)
    assert torch.equal(before, drawing.draw(range(4)))
    with torch.no_grad():
        trainer.ema.net.head.bias.fill_(5.0)
    assert not torch.equal(before, drawing.draw(range(4)))


def test_a_step_in_parts_is_the_step():
    """With the masks of dropout, up to the order of sums."""
    words = [*TINY, "class_conditional=true", "optim.lr=0.01", "unet.dropout=0.3"]
    whole, parts = (trainer_of(config("train", *words, f"grad_accumulation={count}")) for count in (1, 4))
    asked: list[int] = []
    parts.net.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    for _ in range(3):
        whole.advance()
        parts.advance()
    assert asked == [4] * 12
    for one, other in zip(whole.net.parameters(), parts.net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert whole.report() == pytest.approx(parts.report(), rel=1e-4)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_gradients_of_parts_are_added_up_in_pairs(count):
    """To the last bit: so they do not depend on how many processes compute the parts."""
    trainer = trainer_of(config("train", *TINY, "unet.dropout=0.3"))
    parts, each = trainer.batch(0).parts(8)[:count], []
    for part in parts:
        trainer.gradients(part)
        each.append([weight.grad.clone() for weight in trainer.net.parameters()])
        trainer.optimizer.zero_grad()
    losses = trainer.gradients_in_pairs(parts)
    for weight, *terms in zip(trainer.net.parameters(), *each, strict=True):
        assert torch.equal(weight.grad, pairwise_sum(terms))
    assert [len(of_part) for of_part in losses] == [2] * count


def test_a_trainer_that_was_saved_before_its_first_step_is_restored():
    one, other = (trainer_of(config("train", *TINY, f"seed={seed}")) for seed in (0, 1))
    one.save("a.pt")
    other.advance()
    other.load("a.pt")
    assert_same(dict(other.net.state_dict()), dict(one.net.state_dict()))
    assert other.step == 0
    assert not other.optimizer.state


def test_labels_train_a_conditional_network():
    trainer = trainer_of(config("train", *TINY, "class_conditional=true"))
    before = trainer.net.embed_label.weight.detach().clone()
    for _ in range(3):
        trainer.advance()
    assert not torch.equal(before, trainer.net.embed_label.weight)
    assert trainer.net.embed_label.weight.shape[0] == 11  # ten classes and the null label


def test_flips_mirror_half_of_the_images():
    trainer = trainer_of(config("train", *TINY, "dataset.flip=true", "batch_size=400"))
    torch.manual_seed(0)
    x0 = trainer.batch(0).x0
    rows = batch_rows(0, 0, 400, 1438)
    originals = torch.from_numpy(trainer.data.train.images[rows]).float() / 127.5 - 1
    as_is = (x0 == originals).flatten(1).all(1)
    mirrored = (x0 == originals.flip(-1)).flatten(1).all(1)
    assert (as_is | mirrored).all()
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (10, 10), (7, 20)])
def test_every_image_is_seen_once_an_epoch(count, batch_size):
    seen = np.concatenate([batch_rows(5, step, batch_size, count) for step in range(count * 2)])
    epochs = seen[: len(seen) // count * count].reshape(-1, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_learning_rate_warms_up_and_decays():
    assert [learning_rate(step, peak=2.0, warmup=4) for step in (0, 1, 3, 4, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    linear, cosine = (partial(learning_rate, peak=2.0, decay=decay, steps=100) for decay in ("linear", "cosine"))
    assert [linear(step) for step in (0, 50, 75)] == [2.0, 1.0, 0.5]
    assert cosine(50) == pytest.approx(1.0)
    assert cosine(25) == pytest.approx(1 + math.sqrt(0.5))
    root = partial(learning_rate, peak=2.0, decay="inverse_sqrt", constant=100)
    assert [root(step, steps=steps) for step, steps in ((0, 1), (100, 7), (400, 1), (10_000, 9))] == [2, 2, 1, 0.2]
