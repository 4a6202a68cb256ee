"""Tensors from other programs' files, read without running code of theirs and without more memory than the file has."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffuse.system.errors import UserError


class Unreadable(UserError):
    """The file is none of torch or of safetensors, it is damaged, or it holds code."""


Tensors = dict[str, Tensor]
SAFETENSORS, INDEX = ".safetensors", ".index.json"
MOST_LETTERS = 80  # of a name in a message
LARGEST_JSON = 1 << 24  # bytes; the largest index of published weights has 2 MB


def read_weights(path: Path) -> Any:
    """What a file holds: tensors by name, or a mapping with such mappings in it. Raises Unreadable.

    A .safetensors file is read by its package, any other one by torch, which is told to build nothing but tensors.
    """
    if path.suffix == SAFETENSORS:
        return read_safetensors(path)
    refuse_what_unfolds(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles; the error below says enough
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise Unreadable(
            f"{path} was not read: it holds code that loading would run, or it is no file of torch. Have its tensors "
            "saved alone, by torch.save(net.state_dict(), ...) or as .safetensors"
        ) from error
    except (PermissionError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # what torch raises depends on where the damage is
        raise Unreadable(f"{path} is damaged, or no file of torch ({type(error).__name__})") from error


def read_safetensors(path: Path) -> Tensors:
    """The tensors of one .safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        why = (str(error).splitlines() or [""])[0][:120]
        raise Unreadable(f"{path} is damaged, or no file of safetensors ({why})") from error


def refuse_what_unfolds(path: Path) -> None:
    """Raise UserError where the parts of a zip file are compressed: torch's are not, and small ones may become huge."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise Unreadable(
                    f"{path} is a compressed zip file, and those that torch writes are not: it was not read"
                )
    except (zipfile.BadZipFile, ValueError):
        return  # an older file of torch, or none: torch says what is wrong


def read_sharded(index: Path) -> tuple[Tensors, list[Path]]:
    """The tensors of a .safetensors.index.json or .bin.index.json, and the files that they lie in."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} has no weight_map from names of tensors to files")
    found: Tensors = {}
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or name.startswith("."):
            raise UserError(f"{index} names the file {shown(name)}, which is not one beside it: it was not read")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names the file {shown(name)}, which is not beside it")
        shard = tensors_in(read_weights(index.parent / name), index.parent / name)
        found |= {key: tensor for key, tensor in shard.items() if places.get(key) == name}
    if missing := sorted(places.keys() - found.keys()):
        raise UserError(f"{index} promises {shown(missing[0])} in {places[missing[0]]}, which does not hold it")
    return found, [index, *(index.parent / name for name in names)]


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, which is more than such a file has")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a mapping, not {type(found).__name__}")
    return found


def tensors_in(content: Any, path: Path) -> Tensors:
    """The content as floating tensors by name. Raises UserError where it is anything else.

    Or where the tensors have more numbers than the file: torch keeps a number that is repeated a billion times once.
    """
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} does not hold tensors by name, but {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} does not hold tensors alone: {shown(name)} is {type(value).__name__}")
        if value.layout != torch.strided or not value.dtype.is_floating_point:
            raise UserError(f"{path}: {shown(name)} is {value.dtype}, {value.layout}: it must be dense floats")
    size, unfolded = path.stat().st_size, sum(value.nbytes for value in content.values())
    if unfolded > size:
        raise UserError(f"{path} has {size:,} bytes and its tensors {unfolded:,}: it repeats numbers; it was not read")
    return dict(content)


def shown(name: object) -> str:
    """A name from a file for a message: no more than its beginning, and no control characters."""
    text = str(name).encode("unicode_escape").decode()
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}..."
