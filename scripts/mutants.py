"""Which slips in the mathematics the tests would not notice: mutmut over the modules named in pyproject.toml.

    make mutants                                  # all of them
    python scripts/mutants.py 'diffuse.mathematics.continuous.*'   # those whose names match

A mutant is one function with one thing changed in it: + for -, * for /, 2 for 1, None for an argument. A table of how
many the tests tell apart from the original is printed; the differences of those that they do not stand in
build/mutants/survivors.diff, and docs/mutants.md says why each of these is no slip.

mutmut passes over functions with decorators, among them every sampler. So a copy of the tree is made in build/mutants
in which `@sampler(order=1) def ddim` is written `def ddim ...; ddim = sampler(order=1)(ddim)`, and mutmut runs there.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import libcst as cst

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "mutants"
MUTMUT = [sys.executable, "-m", "mutmut"]
LEFT = (0, 33)  # what pytest exits with where all tests pass, and what mutmut notes for functions that no test calls


class Undecorate(cst.CSTTransformer):
    """`@decorator def f` -> `def f` and `f = decorator(f)` after it, which is what a decorator means."""

    def leave_FunctionDef(
        self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef
    ) -> cst.FunctionDef | cst.FlattenSentinel[cst.BaseStatement]:
        if not updated_node.decorators:
            return updated_node
        value: cst.BaseExpression = updated_node.name
        for decorator in reversed(updated_node.decorators):
            value = cst.Call(decorator.decorator, [cst.Arg(value)])
        assignment = cst.Assign([cst.AssignTarget(updated_node.name)], value)
        return cst.FlattenSentinel([updated_node.with_changes(decorators=[]), cst.SimpleStatementLine([assignment])])


def copy() -> None:
    """A fresh copy of what the tests need, without decorators on functions."""
    shutil.rmtree(COPY, ignore_errors=True)
    for part in ("diffuse", "configs", "tests"):
        shutil.copytree(ROOT / part, COPY / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", COPY)
    for path in (COPY / "diffuse").rglob("*.py"):
        path.write_text(cst.parse_module(path.read_text()).visit(Undecorate()).code)


def report() -> None:
    """The table, and the differences of the survivors in their file."""
    survivors, total = [], Counter[str]()
    print(f"\n{'module':<12} {'mutants':>8} {'killed':>8} {'left':>8}")
    for path in sorted((COPY / "mutants" / "diffuse").rglob("*.py.meta")):
        noted = json.loads(path.read_text())["exit_code_by_key"]
        exits = {name: code for name, code in noted.items() if code is not None}  # None: not asked for
        left = [name for name, code in exits.items() if code in LEFT]
        survivors += left
        row = Counter({"mutants": len(exits), "killed": len(exits) - len(left), "left": len(left)})
        total += row
        if exits:
            print(f"{path.name.split('.')[0]:<12} {row['mutants']:>8} {row['killed']:>8} {row['left']:>8}")
    print(f"{'all':<12} {total['mutants']:>8} {total['killed']:>8} {total['left']:>8}")
    shown = [subprocess.run([*MUTMUT, "show", name], cwd=COPY, capture_output=True, text=True) for name in survivors]
    (COPY / "survivors.diff").write_text("\n".join(done.stdout for done in shown))


if __name__ == "__main__":
    copy()
    subprocess.run([*MUTMUT, "run", "--max-children", "1", *sys.argv[1:]], cwd=COPY, check=True)
    report()
