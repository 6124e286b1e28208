"""Who may import whom: the table of the design, enforced on the source."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lockstep"

FREE = {"errors", "dims", "__init__"}  # open to every room
ALL = {"ALL"}

# Room -> the rooms that it may import; a room that is not listed may not exist.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "dims": set(),
    "__init__": set(),
    "ir": set(),
    "ops": {"ir"},
    "families": {"ir", "ops"},
    "passes": {"ir", "ops"},
    "codegen": {"ir"},
    "native": set(),
    "formats": set(),
    "tokenizers": {"formats"},
    "data": {"tokenizers", "artifacts"},
    "artifacts": set(),
    "build": {"ir", "ops", "families", "passes", "codegen", "native", "formats", "artifacts"},
    "engine": {"build", "native", "formats", "tokenizers", "artifacts", "ir"},
    "backends": {"ir", "ops"},
    "oracle": {"families", "formats", "ir"},
    "training": {"build", "engine", "backends", "data", "tokenizers", "artifacts"},
    "proof": {
        *("ir", "ops", "families", "passes", "codegen", "native", "formats", "tokenizers", "data"),
        *("artifacts", "build", "engine", "backends", "oracle", "training"),
    },
    "verify": {"formats", "artifacts"},
    "report": {"artifacts"},
    "server": {"engine", "tokenizers"},
    "cli": ALL,
}

# Package of somebody else -> the rooms that may import it; the core must run without these.
EXTRAS: dict[str, set[str]] = {
    "torch": {"backends", "oracle"},
    "transformers": {"oracle"},
    "llama_cpp": {"oracle"},
    "xllamacpp": {"oracle"},
    "wgpu": {"backends"},
    "ray": {"training"},
    "orbax": set(),  # read through tensorstore; the package writes for the tests,
    "tensorstore": {"formats"},
    "zstandard": {"formats"},
    "h5py": {"formats"},
    "onnx": set(),  # our own bounded reader; the package writes for the tests
    "jax": set(),
    "flax": set(),
    "optax": set(),
    "ml_dtypes": set(),
    "gguf": set(),  # our own bounded reader; the package is an oracle for the tests
}

# Room -> modules of the standard library that would break its promise.
IMPURE = ("datetime", "random", "subprocess", "tempfile", "time")
FORBIDDEN: dict[str, set[str]] = {"codegen": set(IMPURE), "ir": set(IMPURE), "passes": set(IMPURE)}


@functools.cache
def nodes(source: str) -> list[ast.AST]:
    """What may import something: calls and imports."""
    kinds = (ast.Import, ast.ImportFrom, ast.Call)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Each module that a file imports, wherever it does so, with its line.

    `package` is the dotted package that the file is in, to resolve relative imports.
    """
    for node in nodes(source):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            # `from lockstep import ir` names a room too
            names = [f"{base}.{a.name}" for a in node.names] if base == "lockstep" else [base]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.Call) and _is_dynamic_import(node):
            for argument in node.args[:1]:
                yield node.lineno, _constant_start(argument)


def _is_dynamic_import(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in ("import_module", "__import__")


def _constant_start(argument: ast.expr) -> str:
    """The text of a string, or the constant start of an f-string."""
    if isinstance(argument, ast.JoinedStr):
        argument = argument.values[0]
    return str(argument.value) if isinstance(argument, ast.Constant) else "a computed name"


def breaches(room: str, source: str, package: str) -> Iterator[str]:
    """Every import in a file of this room that the design does not allow."""
    for line, module in imported_modules(source, package):
        top, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if top == "lockstep" and other in ROOMS:
            if other not in ROOMS[room] | FREE | {room} and ROOMS[room] is not ALL:
                yield f"line {line}: room {room} may not import room {other}"
        elif top in EXTRAS and room not in EXTRAS[top]:
            yield f"line {line}: room {room} may not import {top}"
        elif module in FORBIDDEN.get(room, set()) or top in FORBIDDEN.get(room, set()):
            yield f"line {line}: room {room} may not import {module}"
        elif module == "a computed name" and room != "cli":
            yield f"line {line}: room {room} may not import a computed name"


def files_by_room() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE).parts[0].removesuffix(".py"), path


def test_every_room_is_in_the_design() -> None:
    strangers = {room for room, _ in files_by_room()} - set(ROOMS)
    assert not strangers, f"rooms that the design does not list: {sorted(strangers)}"


def test_no_file_imports_what_its_room_may_not() -> None:
    files = list(files_by_room())
    assert len(files) > 10, "found hardly any source, so the test would prove nothing"
    found = []
    for room, path in files:
        relative = path.relative_to(SOURCE)
        package = ".".join(("lockstep", *relative.parts[:-1]))
        found += [f"{relative} {breach}" for breach in breaches(room, path.read_text(), package)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "source", "culprit"),
    [
        ("ir", "from lockstep.ops import RMSNORM", "room ops"),
        ("ir", "from lockstep import ops", "room ops"),
        ("ir", "import lockstep.ops.rmsnorm as r", "room ops"),
        ("ops", "from ..families.qwen3 import TINY", "room families"),
        ("ops", "from .. import families", "room families"),
        ("report", "def page():\n    from lockstep.engine import Session", "room engine"),
        ("engine", "if TYPE_CHECKING:\n    from lockstep.oracle import hf", "room oracle"),
        ("training", "from lockstep.oracle import hf", "room oracle"),
        ("codegen", "import_module('lockstep.native')", "room native"),
        ("codegen", "importlib.import_module(f'lockstep.native.{x}')", "room native"),
        ("codegen", "import time", "import time"),
        ("engine", "import torch.nn as nn", "import torch"),
        ("training", "from transformers import Qwen3Config", "import transformers"),
        ("data", "__import__('torch')", "import torch"),
        ("data", "import_module(name)", "a computed name"),
        ("families", "from lockstep.cli.verb import Verb", "room cli"),
    ],
)
def test_a_planted_breach_is_found(room: str, source: str, culprit: str) -> None:
    found = list(breaches(room, source, f"lockstep.{room}"))
    assert len(found) == 1
    assert found[0].endswith(culprit)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("ops", "from lockstep.ir import Op\nfrom lockstep.errors import UsageError"),
        ("ops", "from .rmsnorm import RMSNORM\nfrom lockstep.ops.linear import LINEAR"),
        ("oracle", "import torch, transformers"),
        ("cli", "from lockstep.proof import canary"),
        ("ir", "import lockstep.dims\nfrom lockstep import __version__"),
    ],
)
def test_what_the_design_allows_is_no_breach(room: str, source: str) -> None:
    assert not list(breaches(room, source, f"lockstep.{room}"))


def test_no_room_can_reach_itself_through_others() -> None:
    def reach(room: str) -> set[str]:
        seen: set[str] = set()
        todo = set(ROOMS[room] - ALL)
        while todo:
            seen |= todo
            todo = {other for name in todo for other in ROOMS[name]} - seen
        return seen

    assert not [room for room in ROOMS if room in reach(room)]


def module_graph() -> dict[str, set[str]]:
    """Which modules each module imports, at its top or within a function."""
    paths = {}
    for _, path in files_by_room():
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in nodes(path.read_text()):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & paths.keys()
            elif isinstance(node, ast.ImportFrom):
                named = {f"{node.module}.{alias.name}" for alias in node.names} & paths.keys()
                graph[name] |= named or {str(node.module)} & paths.keys()
    return graph


def test_no_module_imports_itself_through_others() -> None:
    graph = module_graph()
    assert "lockstep.formats.hub_download" in graph["lockstep.formats.hub"]
    assert [*TopologicalSorter(graph).static_order()]
    graph["lockstep.formats.hub_download"].add("lockstep.formats.hub")
    with pytest.raises(CycleError, match="hub_download"):
        TopologicalSorter(graph).prepare()
