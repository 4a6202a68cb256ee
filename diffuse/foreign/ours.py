"""Our own weights as one .safetensors file: the names of our network, with the config in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from diffuse.foreign.files import LARGEST_JSON
from diffuse.system.errors import UserError

KEY = "diffuse"


def header(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts as the metadata of a file: text by name."""
    return {KEY: json.dumps(facts, sort_keys=True)}


def facts_in(path: Path) -> dict[str, Any] | None:
    """The facts in the header of a file; None where it is none of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
        found = None if text is None or len(text) > LARGEST_JSON else json.loads(text)
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is damaged, or no file of safetensors ({str(error)[:120]})") from error
    return found if isinstance(found, dict) else None
