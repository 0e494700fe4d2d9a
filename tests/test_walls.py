"""The walls of the house: which part may import what, and what no part may do.

Every module of the package is read, not run. A part that does not exist yet is no fault.
"""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "carefl_secure"
NAME = PACKAGE.name

# What each part may know of the others. Every part knows itself and the parts of ``FREE``.
_BELOW_RUNS = {
    "captions",
    "config",
    "data",
    "evaluation",
    "federation",
    "model",
    "noise",
    "privacy",
    "run_folder",
    "secagg",
}
KNOWS: dict[str, set[str]] = {
    "errors": set(),
    "extensions": set(),
    "progress": set(),
    "rounding": set(),
    "strict_json": set(),
    "web": set(),
    "run_folder": set(),
    "hub": set(),
    "config": set(),
    "noise": set(),
    "data": set(),
    "evaluation": {"data"},
    "captions": {"data", "hub"},
    "model": {"captions", "data", "evaluation", "hub", "run_folder"},
    "privacy": {"noise"},
    "secagg": {"noise"},
    "federation": {"noise", "privacy", "run_folder", "secagg"},
    "runs": _BELOW_RUNS,
    "deployment": {*_BELOW_RUNS, "runs"},
    "audit": {*_BELOW_RUNS, "runs"},
    "experiment": {*_BELOW_RUNS, "runs"},
    "report": {"config", "federation", "privacy", "run_folder"},
    "cli": {*_BELOW_RUNS, "audit", "deployment", "experiment", "hub", "report", "runs"},
}
# What ``import carefl_secure`` offers stands on everything, as the command line does.
KNOWS["library"] = {*KNOWS["cli"], "cli"}
KNOWS[""] = {"library"}  # the package itself names it
FREE = {"", "errors", "extensions", "progress", "rounding", "strict_json", "web"}  # the package itself: its version

# Protocols of the secure sum do not know each other; ``encrypted`` may build on ``pairwise``.
PROTOCOLS: dict[str, set[str]] = {
    "primitives": set(),
    "encoding": {"primitives"},
    "pairwise": {"encoding", "primitives"},
    "committee": {"encoding", "primitives"},
    "encrypted": {"encoding", "pairwise", "primitives"},
}
MOST_FILES = 15

# Who alone may import a package: patterns over module names below ``carefl_secure``.
LEARNING = ["model.*", "captions.*", "audit.*", "privacy.clipping.*"]
ONLY: dict[str, list[str]] = {
    "accelerate": ["model.*", "captions.*", "hub"],
    "bitsandbytes": ["model.*", "captions.*", "hub"],
    "dp_accounting": [],
    "flwr": ["federation.*", "deployment.*"],
    "jinja2": ["report.*"],
    "jsonschema": ["report.*"],
    "matplotlib": [],
    "mlflow": ["runs.trackers.*"],
    "opacus": [*LEARNING, "privacy.accounting.gaussian_losses"],
    "peft": ["model.*", "audit.*"],
    "pydantic": ["config.*", "report.*", "deployment.*"],
    "ray": ["deployment.ray.*"],
    "rich": ["cli.*"],
    "safetensors": ["model.*", "run_folder", "audit.*"],
    "sklearn": ["audit.*"],
    "tenseal": ["secagg.encrypted.*"],
    "tensorboard": ["runs.trackers.*"],
    "torch": [*LEARNING, "hub"],
    "torchvision": [],
    "transformers": ["model.*", "captions.*", "audit.*", "hub"],
    "typer": ["cli.*"],
    "wandb": ["runs.trackers.*"],
    "click": ["cli.*"],
}

# A secure sum is bytes in, bytes out; and what must not be guessed never comes from these.
CLOCKS_AND_SOCKETS = {"asyncio", "datetime", "http", "requests", "socket", "ssl", "time", "urllib"}
GUESSABLE = {"random", "numpy.random"}
NEVER: dict[str, set[str]] = {"secagg.*": CLOCKS_AND_SOCKETS | GUESSABLE, "noise.*": GUESSABLE, "privacy.*": GUESSABLE}


def matches(module: str, patterns: list[str]) -> bool:
    """Tell whether a module is meant; ``room.*`` means the room's own ``__init__`` too."""
    return any(fnmatch.fnmatchcase(module, pattern) or module == pattern.removesuffix(".*") for pattern in patterns)


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield every name that is imported anywhere in a module, absolute, with its line."""
    home = f"{NAME}.{module}" if module else NAME
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = home.split(".")
                up = up[: len(up) - node.level + is_package]
                base = ".".join([*up, base] if base else up)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):  # importlib.import_module("x"), __import__("x")
            called = ast.unparse(node.func)
            first = node.args[0] if node.args else None
            if called.endswith(("import_module", "__import__")) and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {"np.random", "numpy.random"}:
            yield node.lineno, "numpy.random"


def crossed(module: str, tree: ast.AST, is_package: bool) -> Iterator[str]:
    """Yield each import that crosses a wall."""
    room = module.split(".")[0]
    protocol = module.split(".")[1] if module.startswith("secagg.") else ""
    for line, name in imported(tree, module, is_package):
        where = f"{module or NAME}:{line}"
        if below(name, NAME):
            parts = name.split(".")[1:]
            other = parts[0] if parts else ""
            if room not in KNOWS and module:
                yield f"{where} stands in {room!r}, which has no walls yet: add it to KNOWS"
            elif other in KNOWS and other not in KNOWS.get(room, set()) | FREE | {room}:
                yield f"{where} imports {name}, but {room or NAME} must not know {other}"
            elif room == other == "secagg" and protocol in PROTOCOLS:
                inner = parts[1] if len(parts) > 1 else ""
                if inner in PROTOCOLS and inner not in PROTOCOLS[protocol] | {protocol}:
                    yield f"{where} imports {name}, but {protocol} must not know {inner}"
        for package, patterns in ONLY.items():
            if below(name, package) and not matches(module, patterns):
                yield f"{where} imports {name}, which only {', '.join(patterns) or 'nobody'} may"
        for pattern, packages in NEVER.items():
            if matches(module, [pattern]):
                yield from (
                    f"{where} uses {name}, which {pattern} must not"
                    for package in sorted(packages)
                    if below(name, package)
                )


def printed(module: str, tree: ast.AST) -> Iterator[str]:
    """Yield each way of writing to the terminal, below the command line."""
    if matches(module, ["cli.*"]):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "pprint"}:
            yield f"{module}:{node.lineno} prints"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.stdout", "sys.stderr"}:
            yield f"{module}:{node.lineno} touches {ast.unparse(node)}"


def swallowed(module: str, tree: ast.AST) -> Iterator[str]:
    """Yield each ``except`` or ``suppress`` that would hide any error whatever."""
    broad = {"Exception", "BaseException"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(kind is None or ast.unparse(kind) in broad for kind in kinds):
                yield f"{module}:{node.lineno} catches everything"
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("suppress")
            and any(ast.unparse(argument) in broad for argument in node.args)
        ):
            yield f"{module}:{node.lineno} suppresses everything"


def faults(module: str, source: str, is_package: bool = False) -> list[str]:
    """Return all faults of one module, given by its name below the package."""
    tree = ast.parse(source)
    return [*crossed(module, tree, is_package), *printed(module, tree), *swallowed(module, tree)]


def modules() -> list[tuple[str, Path]]:
    """Return every module of the package by its name below it."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found.append((".".join(p for p in parts if p != "__init__"), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=[m or NAME for m, _ in modules()])
def test_no_wall_is_crossed(module: str, path: Path) -> None:
    assert faults(module, path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


def test_every_folder_is_a_package_with_walls() -> None:
    for path in PACKAGE.iterdir():
        if path.is_dir() and any(path.glob("*.py")):
            assert (path / "__init__.py").is_file(), f"{path.name} has no __init__.py"
            assert path.name in KNOWS, f"{path.name} has no walls yet"


def test_every_folder_is_a_package_and_none_is_crowded() -> None:
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]:
        if folder.name == "__pycache__":
            continue
        files = [path.name for path in folder.iterdir() if path.is_file()]
        assert len(files) <= MOST_FILES, f"{folder} holds {len(files)} files"
        assert "__init__.py" in files or not any(name.endswith(".py") for name in files)


def circles(known: dict[str, set[str]]) -> list[list[str]]:
    """Return groups of modules that import each other, directly or through others."""
    reached: dict[str, set[str]] = {}
    for start in known:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for other in known.get(todo.pop(), set()) - seen:
                seen.add(other)
                todo.append(other)
        reached[start] = seen
    groups = {
        frozenset({one, *(other for other in reached[one] if one in reached.get(other, ()))})
        for one in known
        if one in reached[one]
    }
    return sorted(sorted(group) for group in groups)


def imports_between_modules() -> dict[str, set[str]]:
    """Return which module of the package imports which, wherever in the file that stands."""
    known = {module for module, _ in modules()}
    found: dict[str, set[str]] = {}
    for module, path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[module] = set()
        for _, name in imported(tree, module, path.name == "__init__.py"):
            if not below(name, NAME):
                continue
            other = name.removeprefix(NAME).removeprefix(".")
            while other not in known:
                other = other.rpartition(".")[0]
            if other not in (module, ""):
                found[module].add(other)
    return found


def test_no_module_imports_itself_through_others() -> None:
    assert circles(imports_between_modules()) == []


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_rooms_know_only_rooms_and_no_two_know_each_other() -> None:
    for room, known in KNOWS.items():
        assert known <= set(KNOWS)
        assert all(room not in KNOWS[other] for other in known)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data.x", "import torch"),
        ("data.x", "def f():\n    import torch.nn as nn"),
        ("data.x", "from torch.nn import functional"),
        ("data.x", "import importlib\nimportlib.import_module('torch')"),
        ("data.x", "from carefl_secure.secagg import client"),
        ("data.x", "from carefl_secure import secagg"),
        ("data.x", "import carefl_secure.model"),
        ("data.x", "from ..privacy import events"),
        ("data", "from .. import privacy"),
        ("noise.x", "from carefl_secure.secagg import client"),
        ("noise.x", "from carefl_secure.data import records"),
        ("secagg.x", "from carefl_secure.privacy import events"),
        ("secagg.x", "import time"),
        ("secagg.x", "from datetime import datetime"),
        ("secagg.x", "import socket"),
        ("secagg.x", "import flwr.app"),
        ("secagg.x", "import numpy as np\nnp.random.default_rng(0)"),
        ("noise.x", "from numpy.random import default_rng"),
        ("noise.x", "from numpy import random"),
        ("privacy.x", "import random"),
        ("privacy.ledger", "import torch"),
        ("privacy.x", "from carefl_secure.federation import plan"),
        ("federation.x", "from carefl_secure.config import Config"),
        ("federation.x", "from carefl_secure.model import lora"),
        ("secagg.pairwise.x", "from carefl_secure.secagg.committee import messages"),
        ("secagg.primitives.x", "from carefl_secure.secagg.pairwise.client import PairwiseClient"),
        ("secagg.committee.x", "import tenseal"),
        ("runs.x", "from carefl_secure.deployment import engines"),
        ("model.x", "import flwr"),
        ("model.x", "from carefl_secure.federation import grid"),
        ("federation.x", "import torch"),
        ("federation.x", "import tenseal"),
        ("federation.x", "import rich.console"),
        ("federation.x", "from carefl_secure.cli import app"),
        ("report.x", "from carefl_secure.runs.train import train"),
        ("report.x", "import torch"),
        ("report.x", "import opacus"),
        ("privacy.budget", "import opacus"),
        ("evaluation.x", "from carefl_secure.config import Config"),
        ("errors", "from carefl_secure.progress import Reporter\nimport torch"),
        ("config", "from carefl_secure.data import labels"),
        ("cli.x", "import torch"),
        ("unknown.x", "from carefl_secure.data import labels"),
        ("model.x", "import torchvision"),
        ("data.x", "print('x')"),
        ("federation.x", "import sys\nsys.stdout.write('x')"),
        ("data.x", "try:\n    f()\nexcept Exception:\n    pass"),
        ("cli.x", "try:\n    f()\nexcept (ValueError, BaseException):\n    pass"),
        ("data.x", "try:\n    f()\nexcept:\n    pass"),
        ("data.x", "import contextlib\nwith contextlib.suppress(Exception):\n    f()"),
    ],
)
def test_a_crossed_wall_is_seen(module: str, source: str) -> None:
    assert faults(module, source, is_package="." not in module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data.x", "from carefl_secure.data.records import Record\nfrom .labels import BASIC"),
        ("data.x", "from carefl_secure.errors import DataError\nimport numpy as np"),
        ("data.x", "import numpy as np\nnp.random.default_rng(0)"),
        ("data", "from . import records\nfrom ..errors import DataError"),
        ("secagg.encrypted.x", "import tenseal\nfrom carefl_secure.secagg.pairwise import client"),
        ("privacy.clipping.x", "import torch"),
        ("hub", "import transformers"),
        ("model.x", "import torch\nfrom carefl_secure.data import records"),
        ("federation.x", "import flwr\nfrom carefl_secure.secagg import client"),
        ("cli.x", "import typer\nprint('x')\nfrom carefl_secure.runs.train import train"),
        ("data.x", "try:\n    f()\nexcept (OSError, ValueError):\n    pass"),
        ("", "__version__ = '1'"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert faults(module, source, is_package="." not in module) == []
