"""The rooms of the package stand one after the other, and imports point one way."""

import ast
from pathlib import Path

import pytest
from tiny_run import ROOT

PACKAGE = Path(ROOT, "paddle_maml")
# What each room may import beside itself.
BASE = ["errors", "files"]
ROOMS = {
    "errors": [],
    "files": ["errors"],
    "installed": ["errors"],
    "data": BASE,
    "kernels": BASE,
    "networks": ["kernels"],
    "objectives": ["kernels"],
    "learners": ["kernels", "networks", "objectives"],
    "report": BASE,
    "engine": [*BASE, "installed", "data", "kernels", "networks", "objectives", "learners", "report"],
    "pretrained": [*BASE, "data", "learners", "networks", "report", "engine"],
    "inference": [*BASE, "data", "learners", "networks", "report", "engine", "pretrained"],
    "page": [*BASE, "data", "inference"],
    "interchange": [*BASE, "data", "kernels", "networks", "learners", "report", "engine"],
    "commands": [
        *BASE,
        "data",
        "learners",
        "networks",
        "report",
        "engine",
        "pretrained",
        "inference",
        "page",
        "interchange",
    ],
    "benchmark": [*BASE, "data", "learners", "networks", "report", "engine", "commands"],
    "__main__": ["commands"],
    "__init__": ["installed"],
}
# Rooms whose modules choose what they import, and so whether Paddle is.
MAY_WAIT = ("commands", "benchmark")
FILES = {path.relative_to(PACKAGE): path for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path):
    """A module's name within the package: engine.settings; a room's __init__ has the room's."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in FILES}


def imported(path):
    """Yields (module of the package, line) of each import of a file, those inside functions too."""
    package = path.parent.parts
    for node in ast.walk(ast.parse(FILES[path].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(name.name.split(".")[0] == "paddle_maml" for name in node.names), path
        elif isinstance(node, ast.ImportFrom) and node.level:
            start = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for name in node.names:
                whole = f"{start}.{name.name}".strip(".")
                yield whole if whole in MODULES else start, node.lineno


def test_there_are_imports_to_read():
    found = [module for path in FILES for module, _ in imported(path)]
    assert len(found) > 100 and set(found) <= set(MODULES)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_room_imports_what_stands_before_it(path):
    room = name_of(path).split(".")[0]
    for module, line in imported(path):
        assert module.split(".")[0] in (room, *ROOMS[room]), f"{path}:{line} imports {module}"


def test_no_modules_import_each_other_in_a_circle():
    edges = {name: {module for module, _ in imported(path)} - {name} for name, path in MODULES.items()}
    while edges:
        free = [name for name, needs in edges.items() if not needs & set(edges)]
        assert free, f"a circle in {sorted(edges)}"
        for name in free:
            del edges[name]


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] not in MAY_WAIT], ids=str)
def test_an_import_inside_a_function_says_why(path):
    text = FILES[path].read_text(encoding="utf-8")
    lines = text.splitlines()
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    here, above = lines[node.lineno - 1], lines[node.lineno - 2].strip()
                    assert "#" in here or above.startswith("#"), f"{path}:{node.lineno} does not say why"
