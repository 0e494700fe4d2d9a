"""What parties hash and read back holds no NaN and no infinity."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.strict_json import canonical_json, dataclass_from_json


@dataclasses.dataclass(frozen=True)
class Pair:
    noise: float
    limit: float | None = None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_neither_written_nor_read(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"noise": value})
    for field in ("noise", "limit"):
        found = json.loads(json.dumps({"noise": 1.0, "limit": 2.0} | {field: value}))
        with pytest.raises(ConfigError, match=rf"Pair\.{field} cannot be"):
            dataclass_from_json(Pair, found)


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(ConfigError, match="inf"):
        dataclass_from_json(Pair, json.loads('{"noise": 1e999, "limit": null}'))


def test_whole_numbers_stand_for_floats() -> None:
    assert dataclass_from_json(Pair, {"noise": 1, "limit": None}) == Pair(1.0)
