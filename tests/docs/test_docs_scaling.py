"""The page on growth: what the script writes into it, and a picture that is always the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scaling() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import scaling as module  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    assert isinstance(module, ModuleType)
    return module


def row(how: str, clients: int, cpu: float, peak: float) -> dict[str, Any]:
    return {
        "aggregation": how,
        "clients": clients,
        "parameters": 1_000_000,
        "plan_s": 1.0,
        "round_s": cpu,
        "cpu_s": cpu,
        "cpu_ms_per_client": 1000 * cpu / clients,
        "MB_per_client": 4.2,
        "peak_MB_before": 100.0,
        "peak_MB": peak,
    }


ROWS = [row("committee", 10, 1.0, 200.0), row("committee", 1000, 100.0, 299.0)]


def test_a_server_that_held_all_vectors_would_miss_the_bar(scaling: Any) -> None:
    assert all(bar.holds for bar in scaling.judge([ROWS[0], row("committee", 1000, 99.0, 250.0)]))
    holding = scaling.judge([ROWS[0], row("committee", 1000, 99.0, 4200.0)])
    assert [bar.holds for bar in holding] == [False, True]
    square = scaling.judge([ROWS[0], row("committee", 1000, 10_000.0, 200.0)])
    assert [bar.holds for bar in square] == [True, False]


def test_the_arithmetic_goes_on_from_the_largest_round(scaling: Any) -> None:
    assert scaling.slope(ROWS, "cpu_s") == pytest.approx(1.0)
    text = scaling.markdown(ROWS, "images/scaling.svg")
    assert "power 1.00 of the clients" in text
    assert "10,000 s for 100,000" in text  # 100 s for each 1,000
    assert "100 kB for each" in text and "10.2 GB for 100,000" in text  # 299 MB + 99,000 x 100 kB
    assert "420 GB a round for 100,000" in text
    peers = [row("pairwise", 10, 1.0, 200.0), row("pairwise", 100, 19.0, 200.0)]
    assert "by 1.00 ms of CPU" in scaling.markdown(peers, "x.svg")  # 190 - 100 ms for 90 more


def test_the_same_rows_give_the_same_picture_without_a_date(scaling: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        scaling.draw([*ROWS, row("pairwise", 10, 1.0, 180.0)], tmp_path / name / "x.svg")
    text = (tmp_path / "a" / "x.svg").read_text("utf-8")
    assert text == (tmp_path / "b" / "x.svg").read_text("utf-8")
    assert "dc:date" not in text and "power 1.00" in text
    assert len(text) < 60_000


def test_the_table_goes_between_the_markers_and_nowhere_else(scaling: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"head\n{scaling.BEGIN}\nold\n{scaling.END}\nfoot\n")
    scaling.put(page, "new")
    assert page.read_text() == f"head\n{scaling.BEGIN}\nnew\n{scaling.END}\nfoot\n"
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="lacks the lines"):
        scaling.put(page, "new")


def test_the_page_holds_a_measurement_of_a_thousand_clients_and_its_picture(scaling: Any) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    found = re.findall(r"^\| committee \| ([\d,]+) \|.* (\d+) \|$", page, re.MULTILINE)
    peaks = {int(clients.replace(",", "")): int(peak) for clients, peak in found}
    assert {10, 100, 1000} <= set(peaks)
    assert peaks[1000] - peaks[10] <= scaling.ROOM
    (image,) = re.findall(r"\]\((images/[\w.]+)\)", page)
    assert "<svg" in (ROOT / "docs" / image).read_text("utf-8")
