"""What `ckpt` names: a checkpoint of this program, or other programs' weights in the form of one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffuse.foreign.diffusers_folder import holds_network
from diffuse.foreign.files import SAFETENSORS, Unreadable, read_safetensors
from diffuse.foreign.ours import facts_in
from diffuse.foreign.weights import no_options, read_foreign, typed_in
from diffuse.options.nested import Foreign
from diffuse.runs.checkpoint import Stored, Unsealed, find
from diffuse.system.errors import UserError
from diffuse.system.files import run_path, sha256

NEEDED = {"config", "kind", "step", "data_sha256"}  # in the header of an exported file
# In the content of what has one set of weights, called ema: which one it is, if that is known.
ONE_SET = "one_set"
ORIGIN = "origin"  # of exported weights that came from another program: their format and hashes


def find_any(ckpt: str, key: str, options: Foreign | None = None) -> Stored:
    """The checkpoint that a key means, or other programs' weights; options: what these do not say themselves."""
    options = options or no_options()
    path = run_path(ckpt)
    typed = typed_in(options)
    if path.is_file() and path.suffix == SAFETENSORS and (facts := facts_in(path)):
        return exported_before(path, facts)
    if path.exists() and (path.suffix == SAFETENSORS or (path.is_dir() and holds_network(path))):
        return as_checkpoint(path, key, options, typed)
    try:
        return find(ckpt, key)
    except Unsealed as error:
        if not path.is_file():
            raise
        try:
            return as_checkpoint(path, key, options, typed)
        except Unreadable:
            raise error from None


def exported_before(path: Path, facts: dict[str, Any]) -> Stored:
    """A file that `diffuse export to=safetensors` wrote: one set of weights, whichever was chosen then.

    Of its header nothing is taken but what is named here: a stranger's file may say anything.
    """
    if missing := NEEDED - facts.keys():
        raise UserError(f"the header of {path} has no {', '.join(sorted(missing))}: use another file")
    content = {name: facts[name] for name in NEEDED} | {"ema": read_safetensors(path)}
    content |= {ONE_SET: str(facts.get("weights", "ema"))[:40], ORIGIN: plain_words(facts.get(ORIGIN, ""))}
    return Stored(path.parent.resolve() / path.name, sha256(path), content)


def plain_words(origin: object) -> str:
    """What a file says of its origin, without what would break the table of a model card."""
    return "".join(letter for letter in str(origin)[:1000] if letter.isprintable() and letter != "|")


def as_checkpoint(path: Path, key: str, options: Foreign, typed: dict[str, Any]) -> Stored:
    """Other programs' weights in the form of a checkpoint: of step 0 where they do not say it."""
    found = read_foreign(path, options)
    if found is None:
        raise UserError(
            f"{key}={path} holds tensors, and their names are of no format that is known: docs/weights.md lists those"
        )
    weights, sha256 = next(iter(found.files.items()))
    content = {
        **{"config": found.config, "kind": asdict(found.kind), "step": found.step, "data_sha256": {}},
        **({ONE_SET: ""} if found.raw is found.ema else {"model": found.raw}),
        "ema": found.ema,
        "foreign": {"format": found.format, "files": dict(found.files), "options": typed},
    }
    return Stored(Path(weights), sha256, content)
