"""What was chosen and what came of it, for TensorBoard's page of hyperparameters."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "hparams"


def write_hparams(folder: Path, chosen: Mapping[str, Any], values: Mapping[str, float]) -> None:
    """Write folder/hparams, in place of what was there: dotted keys of a config, and the final values."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in chosen.items()}
    final = {f"final/{name}": value for name, value in values.items()}
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    with SummaryWriter(str(folder / FOLDER)) as writer:  # its own add_hparams would make a folder of its own besides
        for summary in hparams(plain, final):
            writer.file_writer.add_summary(summary)
        for name, value in final.items():
            writer.add_scalar(name, value)
