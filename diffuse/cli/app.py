"""Run one command line: Hydra composes the config, the command runs, errors become messages."""

import os
import shutil
import sys
import traceback
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import hydra

from diffuse.cli.messages import Message, message_for
from diffuse.cli.overrides import overrides_first, resumed_config, sweep_folder, with_sweep_names
from diffuse.cli.task import Command, register, remove_if_empty
from diffuse.sweeps.folder import JOBS, MARKDOWN, PICTURE, Sweep
from diffuse.sweeps.record import DONE, KILLED, closing_words
from diffuse.sweeps.table import as_text
from diffuse.system.errors import Terminated
from diffuse.system.files import CONFIGS, short_path
from diffuse.system.signals import AtOnce, handled_by

COMPLETION = {"-sc", "--shell-completion"}


def main(command: str, typed: list[str]) -> int:
    """Run a command; the exit code is 0 done, 1 failed, 2 not understood, 128 + n for signal n."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    register()
    line = CommandLine(Command(command, typed))
    with handled_by(AtOnce(line.ask_jobs_to_end)):
        return line.run()


class CommandLine:
    """One command line: a single run, or a sweep with its folder."""

    def __init__(self, task: Command):
        self.task = task
        self.sweep: Sweep | None = None

    def run(self) -> int:
        """`main`, with signals raised as exceptions: run the command, end its sweep if it was one, report errors."""
        try:
            self.compose_and_run()
            message = self.end_of_sweep(None)
        except KeyboardInterrupt:
            self.show_table()
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the program that reads our output, `head` perhaps, has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141  # what shells say of a process that SIGPIPE ended
        except Terminated as stop:
            with suppress(OSError):  # the terminal may be gone
                self.show_table()
                print("terminated", file=sys.stderr)
            return stop.exit_code
        except SystemExit as exit:
            return exit.code if isinstance(exit.code, int) else 1
        except Exception as error:
            message = self.end_of_sweep(error) or message_for(error, self.task.name, str(CONFIGS))
            if message is None:
                traceback.print_exc()
                print("error: this is a mistake in diffuse, not yours; please report it", file=sys.stderr)
                return 1
        if message is None:
            return 0
        print(f"error: {message.text}", file=sys.stderr)
        return message.exit_code

    def compose_and_run(self) -> None:
        """Let Hydra compose the config and call the task, once or for each job of a sweep."""
        words = overrides_first(self.task.typed)
        if folder := sweep_folder(words):
            self.sweep = Sweep(folder.absolute())
            words = with_sweep_names(words, folder, self.task.name)
        sys.argv = ["diffuse" if COMPLETION & set(words) else f"diffuse {self.task.name}", *words]
        config_name = resumed_config(self.task.typed) if self.task.name == "train" else self.task.name
        hydra.main(config_path=str(CONFIGS), config_name=config_name, version_base="1.3")(self.task)()
        if self.task.error:
            raise self.task.error

    def ask_jobs_to_end(self) -> None:
        """Send SIGTERM to the sweep's jobs in other processes, and wait for them."""
        if self.sweep:
            self.sweep.ask_jobs_to_end(self.task.given)

    def end_of_sweep(self, error: Exception | None) -> Message | None:
        """Show a sweep's table; the message about jobs that are not done. None if that explains no error."""
        jobs = self.sweep.of_this_time(self.task.given) if self.sweep else []
        if jobs:
            self.show_table()
        self.remove_folder_if_nothing_ran()
        words = closing_words(jobs)
        if error and any(job.status == DONE for job in jobs) and not any(job.status == KILLED for job in jobs):
            return None  # not the jobs, then, but what calls them
        return Message(words, 1) if words else None

    def remove_folder_if_nothing_ran(self) -> None:
        """The records of jobs are of no use where none of them made anything."""
        if self.sweep and self.sweep.remains_of_nothing():
            shutil.rmtree(self.sweep.folder)
            for folder in takewhile(lambda folder: folder != Path.cwd(), self.sweep.folder.parents):
                remove_if_empty(folder)

    def show_table(self) -> None:
        """Print the table of the sweep, if there is one, and where it is."""
        if self.sweep is None or not (self.sweep.folder / JOBS).is_dir():
            return
        self.sweep.draw(fresh=0)
        with suppress(OSError):  # a full disk was reported before; the table is printed all the same
            self.sweep.write_tables()
        print("\n" + as_text(self.sweep.rows(), shutil.get_terminal_size((120, 24)).columns))
        if not self.sweep.remains_of_nothing():
            picture = self.sweep.folder / PICTURE
            beside = f"   picture: {short_path(picture)}" if picture.exists() else ""
            print(f"\ntable: {short_path(self.sweep.folder / MARKDOWN)}{beside}")
