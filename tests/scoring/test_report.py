"""What an evaluation leaves behind: eval.json, and the values for TensorBoard's page of hyperparameters."""

from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from diffuse.commands import train
from diffuse.runs.hparams import write_hparams
from diffuse.scoring.report import Report, expand_metrics, is_continued
from diffuse.system.errors import UserError
from tests.support.commands import TINY, config, output


def shown(folder) -> tuple[dict, dict]:
    """Hyperparameters and final values, as TensorBoard reads them."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = HParamsPluginData.FromString(content).session_start_info.hparams
    chosen = {name: getattr(value, value.WhichOneof("kind")) for name, value in started.items()}
    return chosen, {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}


def test_tensorboard_shows_what_was_chosen_and_what_came_of_it(tmp_path):
    for number in (1, 2):
        options = {"a.b": number, "on": True, "name": "x", "none": None, "list": [1, 2]}
        write_hparams(tmp_path, options, ["name", "absent", "on"], ["loss", "scores/fid"])
    chosen, _ = shown(tmp_path)
    assert chosen == {"a.b": 2.0, "on": True, "name": "x", "none": "None", "list": "[1, 2]"}
    assert len(list(tmp_path.iterdir())) == 1
    content = EventAccumulator(str(tmp_path)).Reload().SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert [info.name for info in experiment.hparam_infos] == ["name", "on", "a.b", "none", "list"]
    assert [info.name.tag for info in experiment.metric_infos] == ["loss", "scores/fid"]


def test_a_run_is_one_entry_of_tensorboard_with_its_losses_first(tmp_path, monkeypatch):
    """And what a sweep varies is the first column of its page of hyperparameters."""
    monkeypatch.chdir(tmp_path)
    words = ["name=r", "unet.dropout=0.1", "schedule=cosine"]
    typed = replace(output(), overrides=words, varied=["schedule"], choices={"schedule": "cosine"})
    train.run(config("train", *TINY, *words), typed)
    run = tmp_path / "outputs" / "r"
    assert {path.parent for path in run.rglob("*tfevents*")} == {run / "tensorboard"}
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"])[0] == "loss"
    assert sorted(events.Tags()["images"])[0] == "samples"
    experiment = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    ).experiment
    assert [info.name for info in experiment.hparam_infos][:3] == ["schedule", "name", "unet.dropout"]
    assert {info.name.tag for info in experiment.metric_infos} <= set(events.Tags()["scalars"])


def test_bpd_stands_for_both_likelihoods_and_each_score_is_asked_once():
    assert expand_metrics(["fid", "bpd", "fid", "ode", "kid"]) == ["fid", "bound", "ode", "kid"]


def summary(name: str, facts: dict) -> str:
    return f"{name} {facts['value']}"


def test_a_score_that_is_known_stays_known(tmp_path):
    given = config("eval", "metrics=[fid,is]", "samples=a")
    first = Report(tmp_path, given, {"checkpoint_sha256": "1"})
    first.score("sample_scores", "fid", lambda: {"fid_tiles": {"value": 2.0, "warnings": ["few"]}}, summary)
    assert is_continued(tmp_path, given, "1")
    second = Report(tmp_path, given, {"checkpoint_sha256": "1"})
    second.score("sample_scores", "fid", lambda: pytest.fail("computed twice"), summary)
    second.score("sample_scores", "is", lambda: {"is_tiles": {"value": 3.0}}, summary)
    assert second.values == {"fid_tiles": 2.0, "is_tiles": 3.0}
    assert second.warnings == {"few": ["fid_tiles"]}
    assert not second.facts["complete"]
    second.close({})
    assert Report(tmp_path, given, {}).values == second.values
    assert shown(tmp_path / "tensorboard")[1] == {"scores/fid_tiles": 2.0, "scores/is_tiles": 3.0}


@pytest.mark.parametrize(
    ("words", "checkpoint", "named"),
    [
        (["n=20"], "1", "differs in n: choose another name="),
        (["seed=1", "features=classifier"], "1", "differs in features._target_, seed"),
        ([], "2", "differs in checkpoint:"),
    ],
)
def test_an_evaluation_of_something_else_is_not_continued(tmp_path, words, checkpoint, named):
    Report(tmp_path, config("eval", "metrics=[fid]"), {"checkpoint_sha256": "1"})
    assert is_continued(tmp_path, config("eval", "metrics=[fid]", "name=b", "data_dir=x", "trust=[y]"), "1")
    with pytest.raises(UserError, match=named):
        is_continued(tmp_path, config("eval", "metrics=[fid]", *words), checkpoint)


def test_a_folder_without_a_report_is_not_continued(tmp_path):
    assert not is_continued(tmp_path, config("eval"), None)
    (tmp_path / "eval.json").write_text('{"values": {')
    assert not is_continued(tmp_path, config("eval"), None)
