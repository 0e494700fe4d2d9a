"""What is read from files is JSON as the standard has it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carefl_secure.strict_json import load_json

PACKAGE = Path(__file__).parents[1] / "carefl_secure"
# Metadata may write NaN for a missing value. None of the others reads a file that somebody else writes: they read
# pipes and frames, orders to a child process, state sealed under a key, entries that must equal their canonical
# form, and what the same line has just written.
OTHERS = {
    "captions/cache.py",
    "data/readers/metadata.py",
    "deployment/flower/relay.py",
    "deployment/superlink/local.py",
    "privacy/ledger/entry.py",
    "secagg/pairwise/state.py",
    "strict_json.py",
}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(values)
def test_json_is_read_as_it_was_written(value: object) -> None:
    assert load_json(json.dumps(value)) == value


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", '{"a": 1, "a": 2}', "[" * 10**5])
@pytest.mark.parametrize("frame", ["{}", "[1, {}]", '{{"deep": [{}]}}'])
def test_what_is_not_json_is_refused(word: str, frame: str) -> None:
    with pytest.raises(ValueError, match=r"finite|twice|deeply"):
        load_json(frame.format(word))


def test_no_other_module_reads_json() -> None:
    lenient = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"json.loads", "json.load"}
    }
    assert lenient == OTHERS
