"""How the files of a deployment are checked: strictly, by pydantic, with one line per file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from carefl_secure.config.load import parse_yaml
from carefl_secure.errors import CareflError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, val_json_bytes="hex", ser_json_bytes="hex")
"""The configuration of every pydantic dataclass here; bytes stand in files as hexadecimal text."""

PublicKey = Annotated[bytes, Field(min_length=32, max_length=32)]
"""An Ed25519 public key or a SHA-256 hash."""

T = TypeVar("T")


def _number(value: Any) -> Any:
    """Read ``1e-4``, which YAML takes for text because it has no point."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Real = Annotated[float, BeforeValidator(_number)]
"""A finite number; written with an exponent it needs no decimal point."""


def read_yaml(path: Path, model: type[T], error: type[CareflError], advice: str) -> T:
    """Read YAML into a dataclass; ``error`` names file and wrong keys, then ``advice``; `ConfigError` if no YAML."""
    # Checked as JSON, where a list may stand for a tuple although nothing else is converted.
    text = json.dumps(parse_yaml(_read(path, error, advice), str(path)), default=str)
    return parse_json(text, model, str(path), error, advice)


def read_json(path: Path, model: type[T], error: type[CareflError], advice: str) -> T:
    """Read a JSON file, as `read_yaml` does."""
    return parse_json(_read(path, error, advice), model, str(path), error, advice)


def parse_json(text: str | bytes, model: type[T], origin: str, error: type[CareflError], advice: str) -> T:
    """Read JSON text, as `read_yaml` does."""
    try:
        return TypeAdapter(model).validate_json(text)
    except ValidationError as found:
        raise error(f"{origin}: {_explain(found)}; {advice}") from found


def _read(path: Path, error: type[CareflError], advice: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as found:
        raise error(f"{path} cannot be read: {found}; {advice}") from found


def _explain(error: ValidationError) -> str:
    """Name every wrong key in one line."""
    said = []
    for found in error.errors(include_url=False, include_input=False):
        key = ".".join(map(str, found["loc"]))
        if found["type"] == "missing":
            said.append(f"{key} is missing")
        elif found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            said.append(f"{key} is unknown")
        else:
            text = re.sub(r"^\w+ should", "must", found["msg"].removeprefix("Value error, "))
            said.append(f"{key}: {text}" if key else text)
    return "; ".join(said)
