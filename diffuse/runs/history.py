"""history.jsonl of a run folder: a line for every command on the run, in order, with the code and machine it ran on."""

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffuse.system.code_state import code_state, cpu_name
from diffuse.system.device import Device
from diffuse.system.files import flush, make_folder
from diffuse.system.progress import log
from diffuse.system.threads import cores

HISTORY = "history.jsonl"


def add_to_history(run: Path, command: str, into: Path, device: Device, trust: Sequence[str]) -> None:
    """Append the line of a command that begins: its words, and everything that its results may depend on.

    into    the folder of its results
    device  its threads are null where training chooses their number, which train.log and the checkpoints say
    trust   the user's own packages, whose code is recorded too
    """
    packages = {name: code_state(name) for name in ("diffuse", *(word.partition(".")[0] for word in trust))}
    line: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command,
        "into": str(into.absolute()),
        "code": packages,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device.torch) if device.torch.type == "cuda" else device.torch.type,
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": device.threads,
        "processes": device.processes.count,
    }
    path = run / HISTORY
    try:
        make_folder(run)
        with open(path, "a", encoding="utf-8") as file:  # one short write, which several processes may do at once
            file.write(json.dumps(line) + "\n")
        flush(path)
    except PermissionError as error:  # another user's file in a shared folder: not a reason to draw nothing
        log.warning(f"{path} has no line about this command: {error.strerror}")
