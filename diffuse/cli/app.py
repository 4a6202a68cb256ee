"""Run one command line: Hydra composes the config, the command runs, errors become messages."""

import logging
import os
import shlex
import shutil
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import hydra

from diffuse.cli.help import help_page
from diffuse.cli.messages import as_user_error, package_of_the_users
from diffuse.cli.overrides import (
    COMPLETION,
    HELP,
    PRINTING,
    overrides_first,
    resumed_config,
    sweep_folder,
    with_full_keys,
    with_name,
    with_runs,
    with_sweep_names,
)
from diffuse.cli.task import Command, register
from diffuse.sweeps.folder import MARKDOWN, PICTURE, Sweep
from diffuse.sweeps.record import DONE, KILLED, closing_message
from diffuse.sweeps.table import as_text
from diffuse.system.errors import Terminated, UsageError, UserError
from diffuse.system.files import CONFIGS, short_path
from diffuse.system.ranks import launch, rank_here, started
from diffuse.system.signals import AtOnce, handle_signals


def run_command(command: str, typed: list[str]) -> int:
    """Run a command; the exit code is 0 done, 1 failed, 2 not understood, 128 + n for signal n."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    register()
    line = CommandLine(Command(command, typed))
    with handle_signals(AtOnce(line.ask_jobs_to_end, waits=started() > 1)):
        code = line.run()
    if started() > 1 and code == 0:  # after an error an orderly end may wait for the others
        from diffuse.system.joining import leave

        leave()
    return code


class CommandLine:
    """One command line: a single run, or a sweep with its folder."""

    def __init__(self, task: Command):
        self.task = task
        self.sweep: Sweep | None = None
        self.absent: list[Path] = []  # the folders that the sweep has to make, the deepest first

    def run(self) -> int:
        """Run the command, end its sweep if it is one, and report errors. Returns the exit code."""
        try:
            self.compose_and_run()
            error = self.end_of_sweep(None)
        except (KeyboardInterrupt, Terminated) as stop:
            with suppress(OSError):  # the terminal may be gone
                self.show_table()
                if again := self.again():
                    print(f"\ncontinue with: {again}")
                print("terminated" if isinstance(stop, Terminated) else "interrupted", file=sys.stderr)
            if launch():  # all processes have agreed to end: torchrun would start them again after another exit code
                return 0
            return stop.exit_code if isinstance(stop, Terminated) else 130
        except BrokenPipeError:  # the program that reads our output, `head` perhaps, has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141  # the exit code of a process that SIGPIPE ended, in a shell
        except SystemExit as exit:
            return exit.code if isinstance(exit.code, int) else 1
        except Exception as raised:
            error = self.end_of_sweep(raised) or as_user_error(raised, self.task.name)
            if error is None:
                traceback.print_exc()
                package = package_of_the_users(raised)
                whose = f"{package}, a package of your own" if package else "diffuse, not yours; please report it"
                print(f"error: this is a mistake in {whose}", file=sys.stderr)
                return 1
        if error is None:
            return 0
        who = f"rank {rank}: " if (rank := rank_here()) else ""
        print(f"error: {who}{error}", file=sys.stderr)
        return error.exit_code

    def compose_and_run(self) -> None:
        """Let Hydra compose the config and call the task, once or for each job of a sweep."""
        words = with_full_keys(overrides_first(self.task.typed), self.task.name)
        if self.task.name != "train":
            words = with_runs(words)
        if folder := sweep_folder(words):
            if started() > 1:
                raise UsageError("a sweep is started once, without torchrun: -m with device.processes=N")
            self.sweep = Sweep(folder.absolute())
            self.absent = [path for path in (self.sweep.folder, *self.sweep.folder.parents) if not path.exists()]
            words = with_sweep_names(words, folder, self.task.name)
        if {"-i", "--info"} & {*words}:
            logging.getLogger("hydra").setLevel(logging.DEBUG)  # this is how Hydra prints it
        sys.argv = ["diffuse" if {*COMPLETION} & {*words} else f"diffuse {self.task.name}", *words]
        config_name = resumed_config(self.task.typed) if self.task.name == "train" else self.task.name
        overrides = [word for word in words if word not in HELP]
        if len(overrides) < len(words) and not any(word.startswith("-") for word in overrides):
            print(self.help_page(config_name, overrides))
            return
        hydra.main(config_path=str(CONFIGS), config_name=config_name, version_base="1.3")(self.task)()
        if self.task.error:
            raise self.task.error

    def help_page(self, config_name: str, overrides: list[str]) -> str:
        """The help page, without the list of groups that Hydra would make for it, in half of the time."""
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return help_page(self.task.name, hydra.compose(config_name, overrides, return_hydra_config=True))

    def ask_jobs_to_end(self) -> None:
        """Send SIGTERM to the sweep's jobs in other processes, and wait for them."""
        if self.sweep:
            self.sweep.ask_jobs_to_end(self.task.given)

    def end_of_sweep(self, error: Exception | None) -> UserError | None:
        """Show the table of a sweep. Returns the error about jobs that are not done, unless `error` has another cause.

        A sweep without any results leaves no folder.
        """
        if self.sweep is None:
            return None
        jobs = self.sweep.jobs_of(self.task.given)
        if jobs:
            self.show_table()
        self.sweep.remove_without_results(self.absent)
        if not jobs and error is None and not {*PRINTING} & {*self.task.typed}:
            return UsageError("this sweep has no jobs: one of its keys has no value (glob() is for options of groups)")
        message = closing_message(jobs, self.again())
        if error and any(job.status == DONE for job in jobs) and not any(job.status == KILLED for job in jobs):
            return None  # jobs work, so the error comes from the launcher or the sweeper
        return UserError(message) if message else None

    def again(self) -> str:
        """The command line that goes on with the sweep; empty where this is none, or left nothing."""
        if self.sweep is None or not self.sweep.jobs.is_dir():
            return ""
        return shlex.join(["diffuse", self.task.name, *with_name(self.task.typed, self.sweep.folder)])

    def show_table(self) -> None:
        """Print the table of the sweep, if this is one with jobs, and the path of the table."""
        if self.sweep is None or not self.sweep.jobs.is_dir():
            return
        self.sweep.draw(fresh=0)
        with suppress(OSError):  # a full disk was reported before; the table is printed all the same
            self.sweep.write_tables()
        print("\n" + as_text(self.sweep.rows(), shutil.get_terminal_size((120, 24)).columns))
        if not self.sweep.has_no_results():
            picture = self.sweep.folder / PICTURE
            beside = f"   picture: {short_path(picture)}" if picture.exists() else ""
            print(f"\ntable: {short_path(self.sweep.folder / MARKDOWN)}{beside}")
