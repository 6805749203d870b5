"""The house has one direction: no circles, no hidden imports, no private doors, no room too large."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import iltm_anomaly

ROOT = Path(iltm_anomaly.__file__).parent
MODULES = {
    ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
# they wait for what is asked for
ALLOWED_INSIDE = {"iltm_anomaly", "iltm_anomaly.cli", "iltm_anomaly.cli_benchmark"}


def imports_of(name: str, tree: ast.AST) -> set[str]:
    """Modules of ours that the nodes of a tree import."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in names:
            while target and target not in MODULES:
                target = target.rpartition(".")[0]
            found |= {target} - {"", name}
    return found


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
GRAPH = {name: imports_of(name, tree) for name, tree in TREES.items() if name not in ALLOWED_INSIDE}


def package_of(name: str) -> str:
    """The room on the ground floor that a module belongs to."""
    return ".".join(name.split(".")[:2])


def test_no_circles():
    TopologicalSorter(GRAPH).prepare()  # CycleError names the modules
    rooms: dict[str, set[str]] = {}
    for name, targets in GRAPH.items():
        rooms.setdefault(package_of(name), set()).update(map(package_of, targets))
    TopologicalSorter({room: targets - {room} for room, targets in rooms.items()}).prepare()


@pytest.mark.parametrize("name", sorted(set(MODULES) - ALLOWED_INSIDE))
def test_a_module(name):
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for function in functions:
        assert not imports_of(name, function), f"{function.name} imports a module of ours: do it at the top"
        assert function.end_lineno - function.lineno < 60, f"{function.name} is too long"
    for target in GRAPH[name]:
        package, _, module = target.rpartition(".")
        assert not module.startswith("_") or name.startswith(f"{package}."), f"{target} is private"
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 400
