"""Every setting that a message, a help text or a description names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

import carefl_secure
from carefl_secure.config.root import Config
from carefl_secure.config.sections import data

PACKAGE = Path(carefl_secure.__file__).parent
SECTIONS = {
    name: set(field.annotation.model_fields)
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
NAMED = re.compile(rf"(?<![\w./\\-])({'|'.join(SECTIONS)})\.([a-z_]+)(?![\w(/.]|\.\w)")
FILES = {"jsonl", "json", "yaml", "npz", "md", "csv", "html", "txt"}


def constants(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a module, without its docstrings."""
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in documented:
            yield node.value


def unknown(text: str) -> set[str]:
    named = NAMED.findall(text) if " " in text else ()  # a message has words
    return {f"{section}.{key}" for section, key in named if key not in SECTIONS[section] and key not in FILES}


def test_every_setting_in_a_message_exists() -> None:
    wrong = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "config" / "renamed.py"  # old names, each with the new one
        for text in constants(ast.parse(path.read_text(encoding="utf-8")))
        for name in unknown(text)
    }
    assert not wrong


def test_a_wrong_name_would_be_found() -> None:
    assert unknown("set data.cache (or CAREFL_CACHE)") == {"data.cache"}
    assert unknown("lower federation.rounds; see run.py") - {"run.py"} == set()
    assert "cache_dir" in data.DataConfig.model_fields and not unknown("data.cache_dir=/tmp")
