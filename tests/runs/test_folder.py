"""A run folder: given again it continues, it may be moved, and it belongs to one process at a time."""

from pathlib import Path

import pytest

from diffuse.commands import train
from diffuse.runs.folder import hold_run
from diffuse.runs.output import Output
from diffuse.runs.record import read_record, write_record
from diffuse.system.errors import UsageError, UserError
from tests.support.commands import TINY, config, output
from tests.support.comparing import assert_runs_are_the_same, metrics, newest
from tests.support.running import as_it_is, forget_from, trained


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_given_again_an_unfinished_run_continues():
    options = ["checkpoint.every=2", "checkpoint.keep=9", "dataset.flip=true", "unet.dropout=0.2"]
    whole, parts = trained("whole", *options), trained("parts", *options)
    forget_from(parts, 4)
    trained("parts", *options)
    assert_runs_are_the_same(whole, parts)
    assert "resumed from step 2 (step_00000002.pt)" in (parts / "train.log").read_text()


def test_given_again_a_finished_run_says_so_and_changes_nothing(caplog):
    folder = trained("done")
    before = as_it_is(folder)
    caplog.clear()
    values = train.run(config("train", *TINY, "name=done"), output())
    assert values == {"loss": metrics(folder)[-1]["loss"]}
    assert "outputs/done is finished: 6 of 6 steps are done" in caplog.text
    assert as_it_is(folder) == before


def test_with_another_config_it_is_refused_with_the_keys_that_differ():
    folder = trained("exp")
    before = as_it_is(folder)
    with pytest.raises(UsageError) as caught:
        trained("exp", "optim.lr=0.5", "unet.dropout=0.25", "seed=3")
    message = str(caught.value)
    for change in ("optim.lr (was 0.003, now 0.5)", "unet.dropout (was 0.0, now 0.25)", "seed (was 0, now 3)"):
        assert change in message
    assert "choose another name=" in message
    assert as_it_is(folder) == before


def test_what_changes_no_weight_may_differ():
    folder = trained("exp")
    changes = ["log.every=3", "images.every=4", "images.count=2", "checkpoint.every=1", "checkpoint.keep=1"]
    changes += ["checkpoint.milestone_every=5", "max_hours=2", "device.precision=bfloat16", "data_dir=elsewhere"]
    assert trained("exp", *changes) == folder
    assert read_record(folder).log.every == 2


def test_given_again_with_more_steps_it_goes_on():
    flat = trained("flat", "optim.decay=none")
    trained("flat", "optim.decay=none", "steps=9", "max_hours=5")
    assert newest(flat)["step"] == 9
    assert (read_record(flat).steps, read_record(flat).max_hours) == (9, None)
    decaying = trained("decaying")
    before = as_it_is(decaying)
    with pytest.raises(UsageError, match="steps cannot change from 6 to 9"):
        trained("decaying", "steps=9")
    assert as_it_is(decaying) == before


def test_a_folder_that_is_no_run_is_not_written_to():
    Path("outputs/photos").mkdir(parents=True)
    Path("outputs/photos/a.txt").write_text("mine")
    with pytest.raises(UserError, match=r"outputs/photos exists already and is not a run .*: choose another name="):
        trained("photos")
    Path("outputs/swept/0").mkdir(parents=True)
    Path("outputs/swept/multirun.yaml").touch()
    with pytest.raises(UserError, match="outputs/swept exists already and holds a sweep"):
        trained("swept")
    assert sorted(path.name for path in Path("outputs/photos").iterdir()) == ["a.txt"]


def test_a_run_that_was_killed_before_it_had_a_record_begins():
    folder = Path("outputs/exp")
    (folder / ".hydra").mkdir(parents=True)
    for name in (".lock", ".config.yaml.4711.tmp"):
        (folder / name).touch()
    trained("exp")
    assert newest(folder)["step"] == 6
    assert not list(folder.rglob("*.tmp"))


def test_what_a_killed_process_was_writing_is_removed():
    folder = trained("exp")
    forget_from(folder, 6)
    half = folder / "checkpoints" / ".step_00000006.pt.4711.tmp"
    half.write_bytes(b"half a checkpoint")
    trained("exp")
    assert not half.exists()


def test_a_run_folder_that_is_in_use_is_refused_at_once():
    folder = trained("exp", "optim.decay=none")
    with hold_run(folder):
        before = as_it_is(folder)
        with pytest.raises(UserError, match="outputs/exp is in use: another process is training there"):
            trained("exp", "optim.decay=none", "steps=9")
        assert as_it_is(folder) == before
    trained("exp", "optim.decay=none", "steps=9")


def test_the_jobs_of_a_sweep_are_runs_too(tmp_path):
    """Given again, a job that is finished is passed over."""
    sweep = Output("test", [], {}, tmp_path / "sweep" / "0_seed-0")
    sweep.sweep_folder.mkdir(parents=True)
    loss = train.run(config("train", *TINY), sweep)
    before = as_it_is(sweep.sweep_folder)
    assert train.run(config("train", *TINY), sweep) == loss
    assert as_it_is(sweep.sweep_folder) == before
    with pytest.raises(UsageError, match="seed"):
        train.run(config("train", *TINY, "seed=1"), sweep)


def test_a_run_that_was_moved_goes_on_where_it_is():
    whole, parts = trained("whole"), trained("parts")
    forget_from(parts, 6)
    parts.rename("outputs/moved")
    trained("moved")
    assert_runs_are_the_same(whole, Path("outputs/moved"))
    with pytest.raises(
        UsageError, match="resume=outputs/moved continues that run under its own name; leave name=other out"
    ):
        train.run(config("train", *TINY, "name=other", "resume=outputs/moved"), output())


@pytest.mark.parametrize(
    "change", ["batch_size=8", "ema.decay=0.5", "class_conditional=true", "optim.clip=3", "dataset.flip=true"]
)
def test_what_changes_weights_may_not_differ(change):
    trained("exp")
    with pytest.raises(UsageError, match=rf"begun with another config.*{change.partition('=')[0]}"):
        trained("exp", change)


def test_no_run_lies_inside_another():
    trained("exp")
    with pytest.raises(UserError, match="outputs/exp/more would lie inside outputs/exp, which is a run"):
        trained("exp/more")
    assert trained("group/one").parent == Path("outputs/group")
    assert trained("group/two").exists()


def test_where_the_data_lie_is_remembered_from_any_folder():
    assert Path(read_record(trained("exp", "data_dir=mine")).data_dir) == Path.cwd() / "mine"


def test_a_run_that_another_process_began_meanwhile_is_not_written_over(monkeypatch):
    def somebody_is_faster(_, folder):
        write_record(folder, config("train", *TINY, "name=exp", "seed=7"))

    monkeypatch.setattr(train, "refuse_small_disk", somebody_is_faster)
    with pytest.raises(UserError, match="outputs/exp was just begun by another process"):
        trained("exp")
    assert read_record(Path("outputs/exp")).seed == 7


def test_the_last_picture_is_drawn_later_if_it_is_missing():
    whole, parts = trained("whole", "images.every=4"), trained("parts", "images.every=4")
    (parts / "images" / "step_00000006.png").unlink()
    trained("parts", "images.every=4")
    assert_runs_are_the_same(whole, parts)
