"""The rooms of the house: who may import whom, read from the imports without running anything."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.places import PACKAGE

TORCH_FREE = (
    *("options.differences", "options.keys", "options.reference", "options.schema", "options.score_names"),
    "options.trust",
)
BELOW = ("mathematics", "networks", "data", "system")
# What the modules of a room may import of this package, beside their own room: rooms, or single modules of a room.
ALLOWED: dict[str, tuple[str, ...]] = {
    "system": (),
    "mathematics": ("system.errors",),
    "networks": ("system",),
    "data": ("system",),
    "options": BELOW,
    "foreign": ("networks", "data", "system", "options"),
    "runs": (*BELOW, "options", "foreign"),
    "scoring": (*BELOW, "options", "runs"),
    "sweeps": ("runs.scalars", "options.differences", "options.score_names", "system"),
    "training": (*BELOW, "options", "runs", "scoring"),
    "commands": (*BELOW, "options", "foreign", "runs", "scoring", "training"),
    "cli": ("system", "sweeps", *TORCH_FREE, "runs.checkpoint_files", "runs.output", "runs.record"),
}
KNOW_HYDRA = ("cli",)
KNOW_OMEGACONF = ("cli", "options", "runs.record")
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    return module.parts[0] if len(module.parts) > 1 else ""


@cache
def imported(module: Path) -> set[str]:
    """Every module named in an import anywhere in the file, with what is taken from it."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / module).with_suffix(".py").read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def ours(module: Path) -> list[str]:
    """room.module.name for each import from this package; `diffuse` itself has a version for everybody."""
    names = imported(module) - {"diffuse.__version__"}
    return [name.removeprefix("diffuse.") for name in names if name.startswith("diffuse.")]


def test_every_module_lives_in_a_room():
    assert {room_of(module) for module in MODULES} == {"", *ALLOWED}
    assert {str(module) for module in MODULES if not room_of(module)} == {"__init__", "__main__"}
    assert all((PACKAGE / room / "__init__.py").read_text() == "" for room in ALLOWED)


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module)], ids=str)
def test_a_module_imports_only_what_its_room_may(module: Path):
    room = room_of(module)
    assert not [name for name in ours(module) if not within(name, (room, *ALLOWED[room]))]


def test_no_imports_run_in_a_circle():
    """Not even late ones, inside functions: what a module needs can be read without reading it again."""
    names = {".".join(module.parts): module for module in MODULES}
    edges = {
        name: {other for other in names if other != name and any(within(found, (other,)) for found in ours(module))}
        for name, module in names.items()
    }
    while leaves := [name for name, below in edges.items() if not below & edges.keys()]:
        for name in leaves:
            del edges[name]
    assert not edges


@pytest.mark.parametrize(
    "configs", [("TrainConfig",), ("NetworkConfig", "EvalConfig"), ("NetworkConfig", "SampleConfig")], ids=", ".join
)
def test_the_config_of_a_command_reaches_few_modules(configs: tuple[str, ...]):
    """All others are handed objects and plain values: eight modules at most see a config."""
    names = {f"options.schema.{name}" for name in configs}
    others = [module for module in MODULES if room_of(module) != "commands" and names & set(ours(module))]
    assert len(others) <= 6, others  # beside the command and `options.schema`, which defines it


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_hydra_and_omegaconf_stay_where_they_are_known(module: Path):
    name, packages = ".".join(module.parts), {name.partition(".")[0] for name in imported(module)}
    assert "hydra" not in packages or within(name, KNOW_HYDRA)
    assert "omegaconf" not in packages or within(name, KNOW_OMEGACONF)


def loaded_by(*arguments: str) -> set[str]:
    """The modules that `diffuse ARGUMENTS` imports, in a new process."""
    called = "from diffuse.cli.main import main; main(sys.argv[1:])"
    program = f"import sys; {called}; print(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_imports_neither_torch_nor_hydra(argument):
    loaded = loaded_by(argument)
    assert not {"torch", "hydra", "omegaconf", "numpy", "asyncio"} & loaded
    rooms = {"diffuse.cli", "diffuse.system"}
    assert {name for name in loaded if name.startswith("diffuse.")} == {
        *rooms,
        "diffuse.cli.main",
        "diffuse.system.errors",
    }


def test_a_process_that_decodes_images_does_not_import_torch():
    program = "import sys, diffuse.data.decoding; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "PIL" in done.stdout.split()
    assert not {"torch", "hydra"} & set(done.stdout.split())


@pytest.mark.parametrize("words", [["ls"], ["diff", "a", "b"]])
def test_listing_and_comparing_runs_does_not_import_torch(words, tmp_path, tiny_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    for name in ("a", "b"):
        (tmp_path / "outputs" / name).symlink_to(tiny_run)
    assert "torch" not in loaded_by(*words)


def test_showing_a_config_does_not_import_torch():
    loaded = loaded_by("train", "--cfg", "job")
    assert "hydra" in loaded
    assert "torch" not in loaded
