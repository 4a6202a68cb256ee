"""TensorBoard's page of hyperparameters, and the names under which it shows scalars."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffuse.runs.scalars import SCORE_PREFIX

EVENTS = "tensorboard"  # the folder of a run's events: one entry on TensorBoard's pages
SUFFIX = ".hparams"  # of the events that hold the options
# TensorBoard sorts by name. So losses come first, then the optimizer, scores and speed.
TAGS = {"grad_norm": "optimizer/grad_norm", "lr": "optimizer/lr", "images_per_second": "speed/images_per_second"}
SCORES = "scores/"


def tag(name: str) -> str:
    """The name in TensorBoard of a value in metrics.jsonl."""
    return SCORES + name.removeprefix(SCORE_PREFIX) if name.startswith(SCORE_PREFIX) else TAGS.get(name, name)


def write_hparams(events: Path, config: Mapping[str, Any], first: Iterable[str], tags: Iterable[str]) -> None:
    """Write a config as dotted keys into a folder of events, in place of an earlier one.

    first  the keys that come first: those that a sweep varies, and those that were typed
    tags   the scalars in the same folder whose last values stand beside the options
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    texts = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()}
    shown = {key: texts[key] for key in [*first, *texts] if key in texts}
    for old in events.glob(f"*{SUFFIX}"):
        old.unlink()
    with SummaryWriter(str(events), filename_suffix=SUFFIX) as writer:  # its add_hparams would add a folder below
        for summary in hparams(shown, dict.fromkeys(tags, 0.0)):
            writer.file_writer.add_summary(summary)
