"""Image folders are read as the ``datasets`` library reads them, which recorded its answers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from carefl_secure.data.corpora.image_folder import load_imagefolder
from tests.data.corpora.datasets_rules import RECORD, build, layouts

LAYOUTS = layouts()
ANSWERS = json.loads(RECORD.read_text(encoding="utf-8"))
NAMES = {"train": "train", "validation": "val", "test": "test"}
LOST = {"metadata in Train and test", "classes in Train and test"}
"""Where that library loses the split folder whose name has a capital, and we do not."""


def test_every_layout_was_recorded() -> None:
    assert set(ANSWERS) == set(LAYOUTS)
    assert all("train" not in ANSWERS[name] for name in LOST)


@pytest.mark.parametrize("name", LAYOUTS)
def test_as_the_library_reads_it(tmp_path: Path, name: str) -> None:
    corpora = load_imagefolder(build(tmp_path, LAYOUTS[name]))
    found = {
        split: dict(Counter(one.space.labels[r.labels[0]] for r in one.records)) for split, one in corpora.items()
    }
    expected = {NAMES[split]: counts for split, counts in ANSWERS[name].items()}
    if name in LOST:
        expected["train"] = expected["test"]
    elif " in " not in name:
        expected = {"all": expected["train"]}
    assert found == expected
