"""The first word of the command line. Standard library only, so that `diffuse --help` is instant."""

import importlib
import os
import sys
from pathlib import Path

from diffuse import __version__
from diffuse.system.errors import did_you_mean

COMMANDS = {
    "train": "fit a diffusion model to a data set, into a run folder",
    "sample": "draw images from a trained run",
    "eval": "score a trained run, by likelihood and by its samples: bits per dimension, FID, KID, ...",
    "export": "write the weights of a run for other programs: diffusers, ...",
}

# Commands without a config: their words are names of folders.
PLAIN = {
    "ls": "list the runs here: state, steps, loss, score, age and size",
    "diff": "show what differs between the configs of runs",
}
SHELLS = ("bash", "zsh", "fish")
HELP = f"""diffuse {__version__}: train, sample and score diffusion models

usage: diffuse COMMAND [key=value ...] [-m]   or   diffuse ls [FOLDER ...]   or   diffuse diff RUN OTHER

{chr(10).join(f"  {name:8}{purpose}" for name, purpose in {**COMMANDS, **PLAIN}.items())}

  diffuse train                                     digits that ship with the package, 3 minutes
  diffuse train dataset=digits schedule=cosine      pick an option of a group
  diffuse train -m schedule=linear,cosine           a sweep: one run for each
  diffuse sample ckpt=outputs/RUN n=64              images from a run folder or a checkpoint
  diffuse eval ckpt=outputs/RUN                     its likelihood on the test split

  diffuse COMMAND --help       groups, options and keys      diffuse COMMAND --cfg job   the config, not run
  diffuse --version            eval "$(diffuse -sc install=bash)"   tab completion (bash, zsh, fish)
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 not understood, 130 interrupted."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed by the process that started this one
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if command in ("-V", "--version"):
        print(f"diffuse {__version__}")
        return 0
    if command in ("-sc", "--shell-completion", "--shell_completion"):
        return complete(rest)
    if command not in {**COMMANDS, **PLAIN}:
        hint = did_you_mean(command, {**COMMANDS, **PLAIN}) or f" Commands: {', '.join({**COMMANDS, **PLAIN})}."
        print(f"error: unknown command {command!r}.{hint}", file=sys.stderr)
        return 2
    try:
        Path.cwd()
    except FileNotFoundError:
        print("error: the current folder was removed: change to one that exists", file=sys.stderr)
        return 1
    try:
        if command in PLAIN:
            return run_plain(command, rest)
        from diffuse.cli.app import run_command  # takes a second, in which the user may press Ctrl-C

        return run_command(command, rest)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run_plain(command: str, words: list[str]) -> int:
    """Run a command whose words are names of folders. Returns the exit code."""
    module = importlib.import_module(f"diffuse.commands.{command}")
    if {"-h", "--help"} & {*words}:
        print(module.USAGE, end="")
        return 0
    try:
        module.run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the program that reads our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as raised:
        from diffuse.cli.messages import as_user_error  # with Hydra, for its errors

        error = as_user_error(raised, command)
        if error is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def complete(rest: list[str]) -> int:
    """Tab completion. Hydra's shell function asks for it, with the line in COMP_LINE."""
    line = os.environ.get("COMP_LINE", "")
    action, _, shell = rest[0].partition("=") if rest else ("", "", "")
    if rest and shell not in SHELLS:
        print(f"error: {rest[0]}: completion knows {', '.join(SHELLS)}", file=sys.stderr)
        return 2
    if action != "query":
        from diffuse.cli.app import run_command

        return run_command("train", ["-sc", *rest])
    _, *words, last = line.split(" ") if " " in line else ("", "")
    command, *before = [word for word in words if word] or [""]
    if not command:
        print(*(name for name in {**COMMANDS, **PLAIN} if name.startswith(last)))
    elif command in {**COMMANDS, **PLAIN}:
        from diffuse.cli.completion import completions

        print(*completions(command, before, last))
    return 0
