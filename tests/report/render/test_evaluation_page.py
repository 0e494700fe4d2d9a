"""The pictures of an evaluation, on its own page and in the report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carefl_secure.data.records import LabelSpace, Record
from carefl_secure.errors import RunError
from carefl_secure.evaluation.assess import Scored, assess
from carefl_secure.evaluation.groups import Settings
from carefl_secure.report import write_evaluation_page, write_report
from tests.report.render.test_page import read

LABELS = ("<calm>", "fear", "joy")


def evaluation(multi: bool) -> dict[str, Any]:
    """Evaluate a hundred drawn records; half of them are of the group b."""
    draw = np.random.default_rng(3)
    targets = np.eye(3, dtype=np.int64)[draw.integers(0, 3, 100)]
    scores = (2.0 * targets + draw.normal(size=(100, 3))).astype(np.float32)
    rows = zip(targets, range(100), strict=True)
    records = [
        Record(
            key=f"r{i}",
            labels=tuple(int(k) for k in np.flatnonzero(row)),
            subject=f"s{i % 50}",
            attributes={"site": "ab"[i % 2]},
        )
        for row, i in rows
    ]
    space = LabelSpace("drawn", LABELS, multi=multi)
    images = [Image.new("RGB", (8, 8), (i, i, i)) for i in range(100)]
    scored = Scored("toy", "drawn", "test split", space, records, targets, images)
    return assess(scored, scores, draw.normal(size=(100, 3)), None, Settings(replicates=20, shuffles=5)).to_json()


@pytest.mark.parametrize("multi", [True, False])
def test_the_page_shows_labels_reliability_and_groups(tmp_path: Path, multi: bool) -> None:
    found = evaluation(multi)
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(found))
    page = write_evaluation_page(file).read_text()
    assert read(page).loads == ["data:,"] and "<calm>" not in page and "&lt;calm&gt;" in page
    titles = re.findall(r'aria-label="([^"]*)"', page)
    assert titles[:3] == [
        "average precision by label (positive records)",
        "how often a stated probability was right",
        "mAP by site (records)" if multi else titles[2],
    ]
    assert ('class="confusion"' in page) == (not multi)
    if not multi:
        counts = [int(n) for n in re.findall(r"color-mix[^>]*>(\d+)</td>", page)]
        assert counts == [n for row in found["confusion"] for n in row]
    for label in found["labels"]:
        assert f"{label['figures']['AP']:.3f} ({label['positives']})" in page
    (comparison,) = found["groups"]
    for group in comparison["groups"]:
        assert f"{group['figures'][comparison['metric']]:.3f} (50)" in page
    assert page.count("<circle") == sum(one["count"] > 0 for one in found["reliability"])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "carefl.evaluation/0"}'])
def test_a_damaged_evaluation_is_an_error_with_what_to_do(copy_run: Callable[[str], Path], text: str) -> None:
    run = copy_run("toy")
    file = run / "evaluation" / "evaluation.json"
    file.parent.mkdir()
    file.write_text(text)
    for work in (lambda: write_report(run), lambda: write_evaluation_page(file)):
        with pytest.raises(RunError, match="run carefl-secure evaluate again"):
            work()


def test_the_report_shows_the_evaluation_of_the_run_where_there_is_one(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("toy")
    write_report(run)
    page = run / "report" / "report.html"
    assert "average precision by label" not in page.read_text()
    (run / "evaluation").mkdir()
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation(True)))
    write_report(run)
    assert "average precision by label" in page.read_text()
    assert read(page.read_text()).loads == ["data:,"]
