"""The rooms of the house: who may know whom. Read from the imports, without running anything."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "diffuse"

# What each module of the core may import from this package; the dependency rule of CONTRIBUTING.md.
ALLOWED = {
    "schedules": set(),
    "paths": {"schedules"},
    "grids": {"schedules"},
    "times": {"schedules"},
    "weights": set(),
    "predictions": {"schedules"},
    "denoiser": {"predictions", "schedules"},
    "variances": {"denoiser", "schedules"},
    "likelihood": {"denoiser", "schedules", "variances"},
    "ode": {"denoiser", "schedules"},
    "losses": {"denoiser", "likelihood", "variances", "weights"},
    "samplers": {"denoiser", "variances"},
    "oracles": {"denoiser", "predictions", "schedules", "variances"},
    "unet": {"errors"},
    "datasets": {"errors", "files", "imagefiles", "images", "prepare", "randomness", "sources", "userdata"},
    "userdata": {"errors", "imagefiles", "prepare", "randomness", "sources"},
    "images": {"prepare"},
    "sources": {"errors", "imagefiles", "prepare"},
    "prepare": {"errors", "files", "progress"},
    "imagefiles": set(),
    "metrics": set(),
    "rows": {"errors", "files", "metrics", "userdata"},
    "features": {"device", "errors", "files"},
    "classifier": {"device", "errors", "features", "files", "images", "progress", "randomness"},
    "imagesets": {"errors", "files", "imagefiles", "images", "prepare", "progress", "sources", "userdata"},
    "ema": set(),
    "device": {"errors", "memory"},
    "memory": set(),
    "randomness": {"device"},
    "files": {"errors"},
    "errors": set(),
}
KNOW_HYDRA = {"app", "command", "help", "typed", "wording"}


def imported(module: str) -> set[str]:
    """Every module named in an import anywhere in the file."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def modules() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py"))


@pytest.mark.parametrize("module", ALLOWED)
def test_the_core_imports_only_what_it_may(module):
    ours = {name.split(".")[1] for name in imported(module) if name.startswith("diffuse.")}
    assert ours <= ALLOWED[module]


@pytest.mark.parametrize("module", modules())
def test_only_the_app_knows_hydra(module):
    knows = any(name.split(".")[0] == "hydra" for name in imported(module))
    assert knows == (module in KNOW_HYDRA)


def loaded_by(*arguments: str) -> set[str]:
    """The modules that `diffuse ARGUMENTS` imports, in a process of its own."""
    program = (
        "import sys; from diffuse.cli import main; main(sys.argv[1:]);print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_imports_neither_torch_nor_hydra(argument):
    heavy = {"torch", "hydra", "omegaconf", "numpy", "asyncio"}
    assert not heavy & loaded_by(argument)


def test_a_process_that_decodes_images_does_not_import_torch():
    program = "import sys, diffuse.imagefiles; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "PIL" in done.stdout.split()
    assert not {"torch", "hydra"} & set(done.stdout.split())


def test_showing_a_config_does_not_import_torch():
    loaded = loaded_by("train", "--cfg", "job")
    assert "hydra" in loaded
    assert "torch" not in loaded
