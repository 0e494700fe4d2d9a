"""JSON from files, read strictly; canonical JSON of plain values, to be hashed, and dataclasses read from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from carefl_secure.errors import ConfigError


def load_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises ValueError for what `json.loads` refuses, and for what it takes beyond the standard: NaN
    and infinities, a number such as ``1e999`` that becomes one, a name that stands twice in an
    object, and nesting too deep to be followed.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_real, object_pairs_hook=unique_names)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a finite number")


def _real(word: str) -> float:
    return value if math.isfinite(value := float(word)) else _refuse(word)


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of some pairs, a hook of `json.loads`; ValueError where a name stands twice."""
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice in the object")
    return found


T = TypeVar("T")


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys and fixed separators; ValueError for NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def canonical_hash(value: Any) -> bytes:
    """Return SHA-256 over the canonical JSON of a value, 32 bytes."""
    return hashlib.sha256(canonical_json(value)).digest()


def with_digest(value: Mapping[str, Any], *free: str) -> dict[str, Any]:
    """Return an object with the SHA-256 of its canonical JSON as ``sha256``; entries in ``free`` are not covered.

    `check_digest` then notices bit rot and accidental edits; a forger can compute a digest as well.
    """
    covered = {name: entry for name, entry in value.items() if name not in (*free, "sha256")}
    return {**value, "sha256": canonical_hash(covered).hex()}


def check_digest(value: Mapping[str, Any], *free: str) -> None:
    """Raise ValueError where an object differs from what `with_digest` returned; one without ``sha256`` passes."""
    if "sha256" in value and value["sha256"] != with_digest(value, *free)["sha256"]:
        raise ValueError("it was changed after it was written (remove its sha256 where the change is intended)")


def dataclass_from_json(kind: type[T], value: Any, *absent: str) -> T:
    """Return a dataclass of bool, int, finite float, str, literals or optionals from its JSON object.

    Every field must be there and nothing else; those in ``absent`` may be missing.

    Raises
    ------
    ConfigError
        A field is missing, unknown or of another type, or the dataclass refuses its value.
    """
    name = kind.__name__
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a JSON object, not {type(value).__name__}")
    hints = get_type_hints(kind)
    wanted = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(value) - wanted):
        raise ConfigError(f"{name} has no field {', '.join(map(str, unknown))}")
    if missing := sorted(wanted - set(value) - set(absent)):
        raise ConfigError(f"{name} lacks {', '.join(missing)}")
    return kind(**{key: _checked(f"{name}.{key}", hints[key], each) for key, each in value.items()})


def _checked(name: str, hint: Any, value: Any) -> Any:
    """Return a value that fits its annotation; a whole number may stand for a float."""
    if get_origin(hint) is Literal:
        fits = type(value) in {type(one) for one in get_args(hint)} and value in get_args(hint)
    elif get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        (hint,) = (one for one in get_args(hint) if one is not type(None))
        return _checked(name, hint, value)
    elif get_origin(hint) is tuple and isinstance(value, list):  # of any length
        return tuple(_checked(name, get_args(hint)[0], one) for one in value)
    elif hint is float and type(value) is int:
        return float(value)
    else:
        fits = type(value) is hint and not (hint is float and not math.isfinite(value))
    if not fits:
        raise ConfigError(f"{name} cannot be {value!r}; the file was not written by this version")
    return value
