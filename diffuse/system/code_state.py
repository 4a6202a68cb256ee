"""Which code ran: the version of a package, its git commit, and a hash of its source."""

import hashlib
import importlib.util
import os
import platform
import subprocess
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")
LISTED = 20  # changed files that are named
PATIENCE = 5.0  # seconds for git


@lru_cache
def code_state(package: str) -> dict[str, Any]:
    """Of an importable package: its version, the SHA-256 of its source files, and its commit if git has it.

    changed: the files that differ from the commit. A package that is not found has nothing but its name.
    """
    with suppress(ImportError, ValueError):
        found = importlib.util.find_spec(package)
        if found and found.origin:
            origin = Path(found.origin)
            folder = origin.parent if found.submodule_search_locations else None
            return {"version": _version(package), **_git(origin), "sha256": _source_hash(folder, origin)}
    return {}


@lru_cache
def cpu_name() -> str:
    """The model of the CPU, as the system calls it."""
    with suppress(OSError):
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _source_hash(folder: Path | None, origin: Path) -> str:
    """The SHA-256 of all Python files of a package, with their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")) if folder else [origin]:
        digest.update(str(path.relative_to(origin.parent)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(origin: Path) -> dict[str, Any]:
    """The commit and the changed files of the repository that has this file; nothing where none has."""

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-c", "core.quotePath=false", "-C", str(origin.parent), *words]
        others = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(command, env=others, capture_output=True, text=True, timeout=PATIENCE, check=True)
        return done.stdout

    with suppress(OSError, subprocess.SubprocessError, UnicodeError):
        git("ls-files", "--error-unmatch", origin.name)
        changed = [line[3:] for line in git("status", "--porcelain", "--", ".").splitlines()]
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": changed[:LISTED]}
    return {}
