"""Train, sample and score diffusion models. The names that `from diffuse import ...` takes stand in __init__.pyi.

They are looked up when they are first asked for (PEP 562), so that `import diffuse` itself is instant.
"""

import ast
from importlib import import_module

__version__ = "0.1.0"

with open(f"{__file__}i", encoding="utf-8") as stub:  # __init__.pyi
    _IMPORTS = [node for node in ast.parse(stub.read()).body if isinstance(node, ast.ImportFrom)]
_HOMES = {alias.name: str(node.module) for node in _IMPORTS for alias in node.names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffuse' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return getattr(home, name) if hasattr(home, name) else import_module(f"{_HOMES[name]}.{name}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
