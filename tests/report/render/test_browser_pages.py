"""Pages but the report at 1280 and 390 pixels: nothing beyond the edge, nothing refused, a picture of each."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from carefl_secure.report import write_evaluation_page, write_report
from carefl_secure.report.render.page import experiment_html
from tests.report.render.test_evaluation_page import evaluation
from tests.report.render.test_page import CHROMIUM, FLAGS

# A cell in a box that scrolls by itself may be wide; the page may not.
MEASURE = """<!doctype html><body><script>
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    const wide = [...page.querySelectorAll("body *")].filter((e) =>
      !e.closest(".wide") && !e.closest("svg") && e.getBoundingClientRect().right > frame.clientWidth + 1);
    document.body.append(`[${frame.clientWidth} scroll ${page.documentElement.scrollWidth} beyond ` +
      `${wide.map((e) => e.tagName).join()}]`);
  }
});
</script>PAGE</body>"""
FRAME = '<iframe src="page.html" style="border:0;width:{}px;height:900px"></iframe>'


def results() -> dict[str, object]:
    """Return an experiment with five variants and six figures."""
    names = ("mAP", "macro_f1", "uar", "micro_AP", "ece", "brier")
    spread = {"mean": 0.512, "low": -0.31, "high": 1.4, "p": 0.04}
    rows = [
        {
            "variant": f"variant-{i}",
            "kind": "federated",
            "made": "x",
            "epsilon": 8.0,
            "seconds": 12.0,
            "figures": dict.fromkeys(names, spread),
        }
        for i in range(5)
    ]
    pairs = [
        {
            "variant": row["variant"],
            "against": "variant-0",
            "over_seeds": dict.fromkeys(names, spread),
            "over_records": {"mAP": spread},
            "p_holm": 0.2,
            "clear": False,
        }
        for row in rows[1:]
    ]
    head = {"name": "toy", "question": "?", "version": "0", "seeds": [0, 1], "level": 0.95, "replicates": 20}
    return {**head, "rows": rows, "comparisons": pairs, "failures": [], "seconds": 60.0}


def make(name: str, run: Path) -> str:
    if name == "experiment":
        return experiment_html(results())
    if name == "evaluation":
        file = run / "evaluation.json"
        file.write_text(json.dumps(evaluation(False)))
        return write_evaluation_page(file).read_text()
    write_report(run, dpia=True)
    return (run / "report" / f"{name}.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("name", ["dpia", "dpia-public", "evaluation", "experiment"])
def test_a_page_fits_a_desk_and_a_phone(copy_run: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "browser"
    folder.mkdir()
    (folder / "page.html").write_text(make(name, copy_run("toy")))
    frames = "".join(FRAME.format(width) for width in (390, 1280))
    (folder / "measure.html").write_text(MEASURE.replace("PAGE", frames))
    words = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", (folder / "measure.html").as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    found = re.findall(r"\[(\d+) scroll (\d+) beyond ([A-Z,]*)\]", done.stdout)
    assert [int(width) for width, _, _ in found] == [390, 1280]
    for width, scroll, beyond in found:
        assert int(scroll) <= int(width) and not beyond, (width, scroll, beyond)
    shots = [flag for flag in words[:-1] if flag != "--dump-dom"]
    for width in (1280, 500):  # a window is never narrower than 500 pixels
        file = folder / f"{name}-{width}.png"
        page = (folder / "page.html").as_uri()
        subprocess.run([*shots, f"--window-size={width},1000", f"--screenshot={file}", page], timeout=120, check=True)
        assert file.stat().st_size > 5000
