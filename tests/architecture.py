"""The package as a picture: which file imports which, on what floor it stands, and where imports run in a circle.

python tests/architecture.py [FOLDER OF THE PACKAGE]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

STAGES = (
    "data",
    "generate",
    "encode",
    "retrieve",
    "evaluation",
    "tune",
    "searcher",
    "studies",
    "store",
    "track",
    "report",
    "publish",
)
"""The way data takes. A stage imports the ground and the stages before it."""
JOINERS = ("pipeline", "serve", "cli")
"""They join stages; no stage imports them."""


def files(root: Path) -> dict[str, Path]:
    """Return the package's modules: dotted name -> file."""
    names = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(path: Path, *, functions: bool = True, types: bool = False) -> Iterator[str]:
    """Yield the full names that a file imports.

    Args:
        path: A Python file.
        functions: With imports inside functions.
        types: With those under ``if TYPE_CHECKING``, which are never executed.
    """

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not functions:
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def arrows(root: Path, *, functions: bool = True) -> dict[str, set[str]]:
    """Return, for each module of a package, the modules of the package that it imports, those for type checkers included."""
    modules = files(root)
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        for full in imported(path, functions=functions, types=True):
            module = full
            while module and module not in modules:
                module = module.rpartition(".")[0]
            if module and module not in (root.name, name):
                graph[name].add(module)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that reach each other (Tarjan's strongly connected components of more than one)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            place = stack.index(name)
            group, stack[place:] = stack[place:], []
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return how many imports lie below each module at most; those in a circle stand on one floor."""
    group = {name: tuple(members) for members in circles(graph) for name in members}
    known: dict[tuple[str, ...], int] = {}

    def floor(name: str) -> int:
        members = group.get(name, (name,))
        if members not in known:
            known[members] = 0
            known[members] = max((floor(below) + 1 for one in members for below in graph[one] if below not in members), default=0)
        return known[members]

    return {name: floor(name) for name in graph}


def wing(name: str) -> str:
    """Return the wing of a module: ``tune`` for embedfit.tune.full, an empty text for the ground."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in (*STAGES, *JOINERS, "samples") else ""


def main() -> None:
    """Print the picture."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "src" / "embedfit"
    modules, graph = files(root), arrows(root)
    level = floors(graph)
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules.items()}
    for place in sorted(set(level.values()), reverse=True):
        print(f"floor {place}")
        for name in sorted(name for name in modules if level[name] == place):
            print(f"    {name.partition('.')[2] or name:32} {lines[name]:5} lines, imports {len(graph[name])}")
    found = circles(graph)
    print(f"{len(modules)} files, {sum(map(len, graph.values()))} arrows, {max(level.values()) + 1} floors, {len(found)} circles")
    for group in found:
        print("    circle: " + ", ".join(group))


if __name__ == "__main__":
    main()
