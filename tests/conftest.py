"""What the tests share: exact data in general position, and schedules of every kind."""

import os
from pathlib import Path

# One thread, here and in the commands that tests start: the networks are too small to gain from more, and threads that
# share cores with anything else wait for each other ten times as long as they compute. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from tensorboard.summary.writer import event_file_writer

from diffuse.commands import train
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.tables import cosine, linear
from diffuse.system.memory import keep_freed_memory
from tests.support.commands import TINY, config, output
from tests.support.gaussian import MEAN, STD, column

keep_freed_memory()


@pytest.fixture(autouse=True)
def event_files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads the event files of one second by their number as text, in which 10 comes before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian(column(MEAN), column(STD))


@pytest.fixture(params=["linear", "cosine"])
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return {"linear": linear, "cosine": cosine}[request.param](1000)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of seconds on digits, as an absolute path; read it, do not train in it."""
    return _train(tmp_path_factory.mktemp("runs"), "name=tiny", "steps=30", "optim.lr=3e-3")


@pytest.fixture(scope="session")
def conditional_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with labels."""
    return _train(tmp_path_factory.mktemp("runs"), "name=labels", "class_conditional=true")


@pytest.fixture(scope="session")
def gaussian_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on the Gaussian, whose pixels have no range."""
    return _train(tmp_path_factory.mktemp("runs"), "name=gaussian", "dataset=gaussian", "dataset.train_count=64")


def _train(folder: Path, *overrides: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.run(config("train", *TINY, *overrides), output())
    (run,) = (folder / "outputs").iterdir()
    return run
