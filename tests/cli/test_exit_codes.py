"""The page on exit codes says what errors.py says, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

from carefl_secure import errors
from carefl_secure.cli.app import INTERRUPTED
from carefl_secure.cli.streams import CLOSED_PIPE

PAGE = (Path(__file__).parents[2] / "docs" / "exit-codes.md").read_text(encoding="utf-8")
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]
KNOWN = {kind.exit_code: kind.__name__ for kind in KINDS}

SIGNALS = {INTERRUPTED: "", CLOSED_PIPE: ""}


def test_codes_differ() -> None:
    assert len(KNOWN) == len(KINDS)


def test_the_table_lists_every_error() -> None:
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)`)? *\|", PAGE, re.MULTILINE)
    assert {int(code): name for code, name in rows} == {**KNOWN, 0: "", **SIGNALS}


def test_every_code_has_a_section_with_description_and_cure() -> None:
    sections = re.split(r"^## (\d+)$", PAGE, flags=re.MULTILINE)[1:]
    codes = [int(code) for code in sections[::2]]
    assert codes == sorted({*KNOWN, 0, *SIGNALS})
    for text in sections[1::2]:
        assert re.search(r"^Description: \S", text, re.MULTILINE)
        assert re.search(r"^How to resolve: \S", text, re.MULTILINE)


def test_settings_named_on_the_page_exist() -> None:
    from carefl_secure.config.explain import KNOWN as SETTINGS

    sections = {key.split(".")[0] for key in SETTINGS if "." in key}
    named = re.findall(rf"`((?:{'|'.join(sections)})\.\w+)`", PAGE)
    assert len(named) > 5
    assert set(named) <= set(SETTINGS)
