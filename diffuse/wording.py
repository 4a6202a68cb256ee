"""What to tell the user when Hydra, OmegaConf or the file system refuses something."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from diffuse.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Message:
    text: str
    exit_code: int


def worded(error: BaseException) -> Message | None:
    return None
