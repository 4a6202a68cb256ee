"""What runs a command from its words: Hydra composes its config, and what goes wrong is worded."""

import os
import shutil
import sys
import traceback
from contextlib import suppress
from types import FrameType

import hydra

from diffuse.cli.messages import Message, worded
from diffuse.cli.overrides import named_by_what_varies, overrides_first, resumed
from diffuse.cli.task import Command, SweepFolder
from diffuse.sweeps.folder import JOBS, MARKDOWN, PICTURE, Sweep
from diffuse.sweeps.record import DONE, KILLED, closing_words
from diffuse.sweeps.table import as_text
from diffuse.system.errors import Terminated
from diffuse.system.files import CONFIGS, shown
from diffuse.system.signals import at_once, handled_by


def main(command: str, typed: list[str]) -> int:
    """Run a command from its words; the exit code is 0 done, 1 failed, 2 not understood, 128 + n for signal n."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    SweepFolder.path = None
    task = Command(command, typed)

    def ask_jobs_to_end(number: int, frame: FrameType | None) -> None:
        with handled_by(at_once):  # asked again, we do not wait for them
            if SweepFolder.path:
                Sweep(SweepFolder.path).ask_jobs_to_end(task.given)
        at_once(number, frame)

    with handled_by(at_once), handled_by(ask_jobs_to_end):
        return run_command(task)


def run_command(task: Command) -> int:
    """`main`, with signals raised as exceptions: run the command, end its sweep if it was one, and word errors."""
    try:
        compose_and_run(task)
        message = end_of_sweep(task, None)
    except KeyboardInterrupt:
        show_table()
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads what we print, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what shells say of a process that SIGPIPE ended
    except Terminated as stop:
        with suppress(OSError):  # the terminal may be gone
            show_table()
            print("terminated", file=sys.stderr)
        return stop.exit_code
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except Exception as error:
        message = end_of_sweep(task, error) or worded(error, task.name, str(CONFIGS))
        if message is None:
            traceback.print_exc()
            print("error: this is a mistake in diffuse, not yours; please report it", file=sys.stderr)
            return 1
    if message is None:
        return 0
    print(f"error: {message.text}", file=sys.stderr)
    return message.exit_code


def compose_and_run(task: Command) -> None:
    """Let Hydra compose the config and call the task, once or for each job of a sweep."""
    words = named_by_what_varies(overrides_first(task.typed), task.name)
    sys.argv = ["diffuse" if {"-sc", "--shell-completion"} & set(words) else f"diffuse {task.name}", *words]
    config_name = resumed(task.typed) if task.name == "train" else task.name
    hydra.main(config_path=str(CONFIGS), config_name=config_name, version_base="1.3")(task)()
    if task.error:
        raise task.error


def end_of_sweep(task: Command, error: Exception | None) -> Message | None:
    """Show a sweep's table and word what its records say is not done; None if that explains no error."""
    jobs = Sweep(SweepFolder.path).of_this_time(task.given) if SweepFolder.path else []
    if jobs:
        show_table()
    SweepFolder.remove_if_nothing_ran()
    words = closing_words(jobs)
    if error and any(job.status == DONE for job in jobs) and not any(job.status == KILLED for job in jobs):
        return None  # not the jobs, then, but what calls them
    return Message(words, 1) if words else None


def show_table() -> None:
    """Print the table of the sweep, if there was one, and where it stands."""
    if SweepFolder.path is None or not (SweepFolder.path / JOBS).is_dir():
        return
    sweep = Sweep(SweepFolder.path)
    sweep.draw(fresh=0)
    with suppress(OSError):  # a full disk has been heard of; the table is printed all the same
        sweep.write_tables()
    print("\n" + as_text(sweep.rows(), shutil.get_terminal_size((120, 24)).columns))
    if not sweep.remains_of_nothing():
        picture = sweep.folder / PICTURE
        beside = f"   picture: {shown(picture)}" if picture.exists() else ""
        print(f"\ntable: {shown(sweep.folder / MARKDOWN)}{beside}")
