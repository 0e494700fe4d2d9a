"""JSON from files, read strictly."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def load_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises ValueError for what `json.loads` refuses, and for what it takes beyond the standard: NaN
    and infinities, a number such as ``1e999`` that becomes one, a name that stands twice in an
    object, and nesting too deep to be followed.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_real, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a finite number")


def _real(word: str) -> float:
    return value if math.isfinite(value := float(word)) else _refuse(word)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice in the object")
    return found
