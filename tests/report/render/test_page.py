"""The page in a browser: it stands alone, it fits a phone, and it says what matters first."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from carefl_secure.report import Report, write_report
from carefl_secure.report.render.charts import Line, line_chart
from carefl_secure.report.render.page import round_charts
from carefl_secure.report.render.templates import environment
from carefl_secure.report.run_record import read_run
from carefl_secure.report.sections import round_line
from carefl_secure.rounding import round_up

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
    "--dump-dom",
]
MEASURE = """<!doctype html><body><script>
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    const wide = [...page.querySelectorAll("body *")].filter(
      (e) => e.getBoundingClientRect().right > frame.clientWidth + 1).map((e) => e.tagName);
    const label = page.getElementById("label").getBoundingClientRect();
    const shown = [...page.querySelectorAll("figure svg")].filter((e) => e.clientHeight > 50);
    document.body.append(`[${frame.clientWidth} scroll ${page.documentElement.scrollWidth} ` +
      `plots ${shown.length} label ${Math.round(label.top)} beyond ${wide.join()}]`);
  }
});
</script><iframe src="report.html" style="border:0;width:390px;height:844px"></iframe>
<iframe src="report.html" style="border:0;width:1280px;height:800px"></iframe></body>"""


class Loads(HTMLParser):
    """Collects whatever a page would load, and every id and reference in it."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            elif name in {"href", "xlink:href"} and value.startswith("#"):
                self.references.append(value[1:])
            elif name in {"src", "href", "xlink:href", "data", "action", "srcset", "poster"}:
                self.loads.append(value)
            self.references += re.findall(r"url\(#([^)]+)\)", value)


def read(page: str) -> Loads:
    found = Loads()
    found.feed(page)
    return found


@pytest.mark.parametrize("name", ["toy", "open"])
def test_the_file_loads_nothing(copy_run: Callable[[str], Path], name: str) -> None:
    run = copy_run(name)
    write_report(run)
    page = (run / "report" / "report.html").read_text()
    found = read(page)
    assert found.loads == ["data:,"]
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert not found.tags & {"script", "img", "iframe", "object", "embed", "base", "form"}
    assert len(found.ids) == len(set(found.ids))
    assert set(found.references) <= set(found.ids)


def test_the_label_comes_first_and_says_it_all(written: tuple[Report, Path]) -> None:
    report, run = written
    page = (run / "report" / "report.html").read_text()
    label = page[page.index('id="label"') : page.index("</section>")]
    assert page.index('id="label"') < page.index("<h2")
    for words in (
        '<p class="big">8</p>',
        "reasonable, not strong",
        "1e-5",
        report.unit.definition,
        "added or removed",
        "the server, even with 1 colluding client",
        "several records",
    ):
        assert words in label
    order = [page.index(f'id="{name}"') for name in ("mechanism", "trust", "checks", "caveats")]
    assert order == sorted(order)
    assert "rounds" in page
    assert report.promise.sentence.split(":")[0] in page


def test_a_norm_that_follows_a_quantile_has_a_chart_and_is_no_score() -> None:
    rows = [{"round": n, "survivors": 7, "mAP": 0.5, "clipping_norm": 1.0 / n} for n in (1, 2, 3)]
    lines = [round_line(row, 1.0) for row in rows]
    assert [line.clipping_norm for line in lines] == [1.0, 1 / 2, 1 / 3]
    assert all(line.metrics == {"mAP": 0.5} for line in lines)
    charts = round_charts(lines, 8.0)
    assert len(charts) == 3 and "clipping norm" in charts[2]
    fixed = [round_line({"round": 1, "survivors": 7}, 1.0)]
    assert fixed[0].clipping_norm is None and len(round_charts(fixed, 8.0)) == 2


def test_the_charts_are_elements_of_their_own(written: tuple[Report, Path]) -> None:
    report, run = written
    page = (run / "report" / "report.html").read_text()
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    titles = ["epsilon spent so far", "scores on public test images", "members found, at most"]
    titles.append("epsilon of this run, by client")
    assert [re.findall(r'aria-label="([^"]*)"', svg)[0] for svg in found] == titles
    for svg in found:
        assert "var(--text)" in svg
        assert not {"http", "<style", "<metadata", "id="} & set(re.findall(r"http|<style|<metadata|id=", svg))
    for words, svg in (("agreed limit 8", found[0]), ("F1 (macro)", found[1]), ("false alarms", found[2])):
        assert words in svg
    client = report.clients[0]
    assert client.run_epsilon is not None
    assert f"client {client.client}" in found[3] and round_up(client.run_epsilon) in found[3]


def test_a_chart_puts_values_where_they_belong() -> None:
    svg = line_chart("t", [Line([(0.0, 0.0), (10.0, 1.0), (5.0, 7.0)])], (0.0, 10.0), (0.0, 1.0), below="x")
    (points,) = re.findall(r'points="([^"]*)"', svg)
    (low, bottom), (high, top), (middle, cut) = (map(float, one.split(",")) for one in points.split())
    assert low < middle < high and middle == pytest.approx((low + high) / 2, abs=0.01)
    assert top < bottom and cut == top  # y grows upwards, and nothing leaves the chart
    log = line_chart(
        "t", [Line([(1e-4, 0.0), (1e-2, 0.5), (1.0, 1.0)])], (1e-4, 1.0), (0.0, 1.0), below="x", percent=True
    )
    places = [float(one.split(",")[0]) for one in re.findall(r'points="([^"]*)"', log)[0].split()]
    assert places[1] == pytest.approx((places[0] + places[2]) / 2, abs=0.01)
    assert ">0.01 %<" in log and ">100 %<" in log
    macros = environment(html=True).get_template("charts.j2").module
    rows = [("<b>", 0.5, "half", 0.4, 2.0), ("none", 0.0, "0", None, None)]
    bars = str(macros.bars("t", rows, 1.0, (1.0, "limit")))  # type: ignore[attr-defined]
    assert "&lt;b&gt;" in bars and "limit" in bars
    widths = [float(one) for one in re.findall(r'width="([\d.]+)"', bars)]
    assert widths[0] > 100 and widths[1] == 0.5


def browse(folder: Path, page: str) -> tuple[str, str]:
    """Open ``measure.html`` with a page in two frames; return its document and the messages."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    folder.mkdir()
    (folder / "report.html").write_text(page)
    (folder / "measure.html").write_text(MEASURE)
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", (folder / "measure.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("name", ["toy", "open"])
def test_the_page_in_a_browser(copy_run: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    run = copy_run(name)
    write_report(run)
    seen, messages = browse(tmp_path / "browser", (run / "report" / "report.html").read_text())
    assert "CONSOLE" not in messages  # no error, and no load that the page's own rule refused
    plots = {"toy": 4, "open": 2}[name]
    found = re.findall(rf"\[(\d+) scroll (\d+) plots {plots} label (\d+) beyond \]", seen)
    assert [int(width) for width, _, _ in found] == [390, 1280]
    for width, scroll, top in found:
        assert int(scroll) <= int(width)  # nothing to scroll sideways, nothing beyond the edge
        assert int(top) < 200  # the label stands on the first screen


def test_the_browser_would_have_told(written: tuple[Report, Path], tmp_path: Path) -> None:
    """A load, and something too wide: both are seen, so their absence above means something."""
    page = (written[1] / "report" / "report.html").read_text()
    bad = '<img src="http://localhost:1/x.png"><p style="width:2000px">wide</p></main>'
    seen, messages = browse(tmp_path / "browser", page.replace("</main>", bad))
    assert "CONSOLE" in messages
    assert "x.png" in messages
    assert re.search(r"\[390 scroll 2\d{3} plots 4 label \d+ beyond P", seen)


def test_findings_in_collapsed_details_are_printed(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("toy")
    finding = {
        "attack": "membership",
        "check": "threshold",
        "verdict": "passed",
        "words": "Nothing was found.",
        "figures": {},
    }
    head = {"format": "carefl.audit/1", "run": read_run(run).run_id, "verdict": "not falsified"}
    (run / "audit").mkdir()
    (run / "audit" / "audit.json").write_text(json.dumps({**head, "findings": [finding]}))
    write_report(run)
    page = (run / "report" / "report.html").read_text()
    outside = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert "<details" in page
    assert "Nothing was found." in outside
    assert ".print-only { display: none; }" in page
    paper = page[page.index("@media print {") :]
    assert ".print-only { display: block; }" in paper
    assert ".audit details { display: none; }" in paper


def test_printed_pages_have_a_header_and_numbers(written: tuple[Report, Path]) -> None:
    report, run = written
    page = (run / "report" / "report.html").read_text()
    rule = re.search(r"@page \{.*", page)
    assert rule is not None
    assert f'content: "Privacy report: run {report.run.id}"' in rule[0]
    assert "counter(page)" in rule[0]
    assert "counter(pages)" in rule[0]
