"""The options of a run and its final values, for TensorBoard's page of hyperparameters."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_hparams(folder: Path, config: Mapping[str, Any], values: Mapping[str, float]) -> None:
    """Write folder/hparams, replacing an earlier one: a config as dotted keys, and the final values."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    shown = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()}
    final = {f"final/{name}": value for name, value in values.items()}
    shutil.rmtree(folder / "hparams", ignore_errors=True)
    with SummaryWriter(str(folder / "hparams")) as writer:  # writer.add_hparams would add another folder below it
        for summary in hparams(shown, final):
            writer.file_writer.add_summary(summary)
        for name, value in final.items():
            writer.add_scalar(name, value)
