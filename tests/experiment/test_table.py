"""The statistics of the table against scipy and by construction, and the pages made of them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from carefl_secure.config.experiment import Experiment
from carefl_secure.errors import RunError
from carefl_secure.experiment.run import Finished
from carefl_secure.experiment.scores import Scores
from carefl_secure.experiment.table import holm, mean_interval, results
from carefl_secure.report.render.page import experiment_html, experiment_markdown, interval, spent, spread


def test_the_interval_is_that_of_scipys_paired_test() -> None:
    x = np.array([0.61, 0.64, 0.60, 0.66])
    y = np.array([0.58, 0.63, 0.55, 0.61])
    found = mean_interval((x - y).tolist(), 0.95)
    expected = stats.ttest_rel(x, y)
    low, high = expected.confidence_interval(0.95)
    assert found["p"] == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-9)


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([0.5], 0.95) == {"mean": 0.5, "low": None, "high": None, "p": None}
    assert mean_interval([0.0, 0.0], 0.95)["p"] == 1.0
    assert mean_interval([0.1, 0.1], 0.95)["p"] == 0.0


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1.0


def made(folder: Path, variant: str, seed: int, skill: float) -> Finished:
    """A cell whose scores know the truth to some degree; noise is shared between variants."""
    rng = np.random.default_rng(seed)
    truth = rng.random((200, 26)) < 0.2
    noise = rng.normal(size=(200, 26))
    scores = (skill * truth + noise).astype(np.float32)
    held = Scores(truth, scores[None], np.zeros((1, 26)), np.arange(200) // 2, {"face": [0, 1, 2]})
    place = folder / f"{variant}-seed{seed}"
    place.mkdir(parents=True)
    held.write(place / "scores.npz")
    return Finished(variant, seed, None, 1.0, held.statistic()())


def asked(**more: Any) -> Experiment:
    cells = [{"name": "plain"}, {"name": "better"}, {"name": "same"}]
    fields = {"name": "t", "question": "A <b> question?", "seeds": [0, 1, 2], "replicates": 100}
    return Experiment.model_validate({**fields, "cells": cells, **more})


def finished(folder: Path) -> list[Finished]:
    skills = {"plain": 1.0, "better": 2.0, "same": 1.0}
    return [made(folder, name, seed, skill) for seed in range(3) for name, skill in skills.items()]


def test_a_real_gain_is_clear_and_no_gain_is_not(tmp_path: Path) -> None:
    found = results(asked(), finished(tmp_path), tmp_path)
    rows = {row["variant"]: row for row in found["comparisons"]}
    assert set(rows) == {"better", "same"}
    assert rows["better"]["clear"] and not rows["same"]["clear"]
    gain = rows["better"]["over_records"]["mAP"]
    # Resamples overrate a mean of AP, the better model's less: the interval corrects for that, and
    # need not hold the plain difference.
    assert 0.2 < gain["low"] < gain["high"] < 0.45
    assert gain["mean"] == pytest.approx(rows["better"]["over_seeds"]["mAP"]["mean"], abs=1e-12)
    # The very same scores differ by nothing on every draw: pairs meet the same draws.
    nothing = rows["same"]["over_records"]["mAP"]
    assert (nothing["low"], nothing["mean"], nothing["high"]) == (0.0, 0.0, 0.0)
    assert rows["same"]["p_holm"] == 1.0
    assert "mAP face" in rows["better"]["over_seeds"]


def test_other_records_are_never_paired(tmp_path: Path) -> None:
    cells = finished(tmp_path)
    path = tmp_path / "better-seed0" / "scores.npz"
    held = Scores.read(path)
    Scores(~held.targets, held.scores, held.thresholds, held.units, held.slices).write(path)
    found = results(asked(), cells, tmp_path)
    rows = {row["variant"]: row for row in found["comparisons"]}
    assert rows["better"]["over_records"] == {} and not rows["better"]["clear"]


def test_scores_come_back_as_they_were_and_damage_is_refused(tmp_path: Path) -> None:
    made(tmp_path, "a", 0, 1.0)
    path = tmp_path / "a-seed0" / "scores.npz"
    held = Scores.read(path)
    assert held.slices == {"face": [0, 1, 2]} and held.scores.dtype == np.float32
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="cannot be read"):
        Scores.read(path)


class Loads(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "img"):
            self.found.append(tag)
        self.found += [str(v) for k, v in attrs if k in ("src", "href") and v != "data:,"]


def test_the_pages_name_all_rows_and_failures_and_load_nothing(tmp_path: Path) -> None:
    cells = [*finished(tmp_path)[:-1], Finished("same", 2, None, 0.0, {}, "a <script> fell over")]
    found = results(asked(), cells, tmp_path)
    json.dumps(found, allow_nan=False)
    html, text = experiment_html(found), experiment_markdown(found)
    for page in (html, text):
        for name in ("plain", "better", "same", "same-seed2", "over seeds", "Holm"):
            assert name in page
    assert "<script>" not in html and "&lt;script&gt;" in html and "A <b> question" not in html
    verdicts = {line.split(" | ")[0]: line for line in text.splitlines() if "| plain |" in line}
    assert verdicts["| better"].endswith("| yes |") and verdicts["| same"].endswith("| no |")
    assert html.count(">yes</td>") == 1 and html.count(">no</td>") == 1
    page = Loads()
    page.feed(html)
    assert page.found == []
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = {line.count("|") for line in rows[:5]}, {line.count("|") for line in rows[5:]}
    assert [len(one) for one in columns] == [1, 1]  # every row of a table is as long


def test_the_page_shows_no_interval_beyond_a_figures_bounds_and_no_epsilon_of_zero_shot() -> None:
    wide = {"mean": 0.9, "low": 0.7, "high": 1.1, "p": None}
    assert interval(wide, "mAP") == "[0.700, 1.000]"
    assert interval({**wide, "low": -0.2}, "macro_f1") == "[0.000, 1.000]"
    assert interval(wide) == "[+0.700, +1.100]"  # a difference of figures
    assert spread(wide, "mAP") == "0.900 [0.700, 1.000]"
    assert spent({"kind": "zero-shot", "epsilon": 0.0}) == "–"
    assert spent({"kind": "train", "epsilon": 7.9996}) == "8"
    assert spent({"kind": "train", "epsilon": None}) == "none"


def test_zero_shot_rows_show_a_dash_and_intervals_stand_on_a_line_of_their_own(tmp_path: Path) -> None:
    found = results(asked(), finished(tmp_path), tmp_path)
    found["rows"][0] |= {"kind": "zero-shot", "epsilon": 0.0}
    html, text = experiment_html(found), experiment_markdown(found)
    assert "0.00 |" not in text
    assert ">0.00<" not in html
    assert html.count("<small>[") >= 3  # so that all columns fit 1280 pixels
    assert "@page" in html
