"""Every setting by its dotted key, and what is said of one that is wrong, unknown or renamed."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from carefl_secure.config.root import Config

FLAGS: Mapping[str, str] = {
    "epsilon": "privacy.epsilon",
    "data": "data.source",
    "rounds": "federation.rounds",
    "clients": "federation.clients",
    "aggregation": "federation.aggregation",
    "stages": "stages.spaces",
    "run_dir": "run.dir",
    "seed": "run.seed",
    "track": "run.trackers",
}
"""The keys that flags of the command line stand for."""

_OLD = yaml.safe_load(Path(__file__).with_name("renamed.yaml").read_text("utf-8"))
RENAMED: Mapping[str, str] = _OLD["keys"]
RENAMED_VALUES: Mapping[str, Mapping[str, str]] = _OLD["values"]
REMOVED: Mapping[str, str] = _OLD["removed"]


def _fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= _fields(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


KNOWN = _fields(Config)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 2


@dataclass(frozen=True)
class Setting:
    """One setting in words: its dotted key, the values it takes (Markdown), its default as YAML, and what it means."""

    key: str
    allowed: str
    default: str
    meaning: str


def settings() -> Iterator[Setting]:
    """Yield every setting, section by section."""
    schemas: dict[str, dict[str, Any]] = {}
    for key, field in KNOWN.items():
        section, _, leaf = key.rpartition(".")
        kind = Config.model_fields[section].annotation if section else Config
        if section not in schemas and isinstance(kind, type) and issubclass(kind, BaseModel):
            schemas[section] = kind.model_json_schema()["properties"]
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else _yaml(default)
        yield Setting(key, allowed(schemas[section][leaf or key]), shown, field.description or "")


def allowed(schema: dict[str, Any]) -> str:
    """Say in words which values a JSON schema accepts."""
    if "anyOf" in schema:
        return " or ".join(allowed(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        words = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{word}`" for word in words)
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items", schema.get("prefixItems", [{}])[0:1])
        inner = items[0] if isinstance(items, list) else items
        return f"list of {allowed(inner)}"
    if kind == "null":
        return "`null`"
    if kind == "boolean":
        return "`true`, `false`"
    if kind == "string":
        return "path" if schema.get("format") == "path" else "text"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    words = "whole number" if kind == "integer" else "number"
    if low is not None:
        words += f" {'≥' if 'minimum' in schema else '>'} {low:g}"
    if high is not None:
        words += f"{' and' if low is not None else ''} "
        words += f"{'≤' if 'maximum' in schema else '<'} {(f'{high:,.0f}' if high >= 1000 else f'{high:g}')}"
    return words


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def unknown(key: str) -> str:
    """Say that a key is unknown, and which one was probably meant."""
    if key in RENAMED:
        return f"{key} was renamed: write {RENAMED[key]}."
    if key in REMOVED:
        return f"{key} was removed: {REMOVED[key]}."
    if "." not in key and key in FLAGS:
        return f"unknown setting {key!r}; did you mean {FLAGS[key]!r}? Correct or remove it."
    section, _, leaf = key.rpartition(".")
    if key in KNOWN:
        return f"{key} stands in one line; write {leaf} below the section {section}, indented."
    inside = [known for known in KNOWN if known.startswith(key.split(".", 1)[0] + ".")]
    if inside and "." not in key:
        return f"{key!r} is a section; name one of its settings: {', '.join(inside)}."
    for candidates in (inside, list(KNOWN)):
        leaves = {known.rsplit(".", 1)[-1]: known for known in candidates}
        if close := difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.65):
            meant = leaves[close[0]]
            return f"unknown setting {key!r}; did you mean {meant!r}? Correct or remove it."
    names = inside or sorted({known.split(".", 1)[0] for known in KNOWN})
    return f"unknown setting {key!r}; known are {', '.join(names)}. Correct or remove it."


def explain(error: ValidationError) -> str:
    """Turn the checker's findings into lines that name the key and what to do."""
    lines: list[str] = []
    for found in error.errors(include_url=False):
        parts = [str(part) for part in found["loc"]]
        key = ".".join(parts)
        message = found["msg"].removeprefix("Value error, ").replace("Input should", "must")
        given = _SHORT.repr(found["input"])
        if found["type"] == "extra_forbidden":
            line = unknown(key)
        else:
            known = next((k for n in range(len(parts), 0, -1) if (k := ".".join(parts[:n])) in KNOWN), None)
            if known is not None:
                renamed = RENAMED_VALUES.get(known, {}).get(given.strip("'"))
                line = (
                    f"{known}={found['input']} was renamed: write {known}={renamed}."
                    if renamed
                    else f"{known}: {message} (given: {given}). It is: {KNOWN[known].description}."
                )
            elif found["type"] == "value_error":
                line = f"{message}."
            else:
                line = f"{key or 'configuration'}: {message}; it is a section with settings below."
        if line not in lines:
            lines.append(line)
    return "\n".join(lines)
