"""The names that notebooks take from the package itself: each is there, and costs nothing until it is used."""

import ast
import re
import subprocess
import sys

import pytest

import diffuse
from tests.support.places import PACKAGE, REPOSITORY

STUB = [node for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body if isinstance(node, ast.ImportFrom)]
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])


def test_the_list_is_what_an_editor_reads():
    assert diffuse.__all__ == sorted(alias.asname for node in STUB for alias in node.names)
    assert set(diffuse.__all__) <= set(dir(diffuse))


@pytest.mark.parametrize("name", diffuse.__all__)
def test_a_public_name_is_there_and_explains_itself(name):
    assert getattr(diffuse, name).__doc__


def test_a_name_that_does_not_exist_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="module 'diffuse' has no attribute 'DDIM'"):
        diffuse.DDIM  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'DDIM'"):
        exec("from diffuse import DDIM")


def test_importing_the_package_loads_nothing_of_it():
    program = "import sys; before = set(sys.modules); import diffuse; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not {"torch", "numpy", "hydra"} & set(loaded)
    assert [name for name in loaded if name.startswith("diffuse")] == ["diffuse"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_import_public_names_alone(page):
    for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffuse"):
                assert node.module == "diffuse"
                assert {alias.name for alias in node.names} <= set(diffuse.__all__)
