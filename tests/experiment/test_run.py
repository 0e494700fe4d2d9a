"""Cells run, are resumed, are never run twice, and fail by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carefl_secure.config.experiment import Cell, Experiment, cells_of
from carefl_secure.errors import ConfigError, DataError, RunError
from carefl_secure.experiment import run as runs
from carefl_secure.experiment.run import run_cell, run_cells, scores_file
from carefl_secure.experiment.scores import Bench, Scores, label_slices, train_centrally, train_locally
from carefl_secure.experiment.table import results
from carefl_secure.federation.plan.calibrate import plan_run
from carefl_secure.federation.server.optimizers import FedAdam
from carefl_secure.privacy.accounting.budget import BudgetQuestion, solve_budget
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.evaluation.generated import evaluate_generated
from carefl_secure.runs.plan_from_config import request_of
from carefl_secure.runs.prepare import begin_as_federated, prepare
from carefl_secure.runs.train import train

Make = Callable[..., Experiment]
SILENT = SilentReporter()
PRIVATE = {"privacy.unit": "record", "privacy.epsilon": 8}


def test_every_kind_of_cell_gives_figures_and_is_not_run_again(
    make: Make, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = make(
        [
            {"name": "fed"},
            {"name": "zero", "kind": "zero-shot"},
            {"name": "local", "kind": "local"},
            {"name": "central", "kind": "central"},
            {"name": "central-dp", "kind": "central", "set": PRIVATE},
        ]
    )
    cells = cells_of(asked, out)
    found = {one.variant: one for one in run_cells(cells, 1, SILENT)}
    assert {one.error for one in found.values()} == {None}
    for one in found.values():
        assert set(one.figures) == {"mAP", "macro_f1", "mAP face", "mAP context"}
        assert all(0 < value < 1 for value in one.figures.values())
    spent = {name: one.epsilon for name, one in found.items()}
    assert spent["fed"] is spent["local"] is spent["central"] is None
    assert spent["zero"] == 0.0
    epsilon = spent["central-dp"]
    assert epsilon is not None and 4 < epsilon <= 8
    differing = {round(one.figures["mAP"], 9) for one in found.values()}
    assert len(differing) == len(found)  # five ways, five models
    local = Scores.read(scores_file(out, "local", 0))
    assert len(local.scores) == 3 and len(Scores.read(scores_file(out, "fed", 0)).scores) == 1
    # Figures in the paper are those of the scores next to it.
    assert local.statistic()()["mAP"] == pytest.approx(found["local"].figures["mAP"], abs=1e-12)
    # No feature of an image lies in any folder: only scores, adapters, papers.
    assert not [p for p in out.rglob("*") if "feature" in p.name]

    def refuse(*_: object) -> None:
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(runs, "train", refuse)
    monkeypatch.setattr(runs, "Bench", refuse)
    assert {one.variant: one for one in run_cells(cells, 1, SILENT)} == found

    texts = evaluate_generated(out / "fed-seed0", SILENT, constrained=True, replicates=50)
    kept = out / "fed-seed0" / "evaluation" / "evaluation-generation.json"
    assert json.loads(kept.read_text())["figures"] == texts.figures
    assert texts.unparsable == 0 and "mAP" not in texts.figures
    assert 0 <= texts.figures["macro_f1"] <= 1 and "no average precision" in texts.remark


class Stop(SilentReporter):
    """Pulls the plug after so many rounds."""

    def __init__(self, after: int) -> None:
        self._left = after

    def round(self, row: Any) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


def cell(asked: Experiment, out: Path) -> Cell:
    return cells_of(asked, out)[0]


def test_an_interrupted_run_goes_on_where_it_stopped(make: Make, out: Path) -> None:
    asked = make([{"name": "a", "set": {"federation.rounds": 3}}])
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell(asked, out), Stop(1))
    folder = out / "a-seed0"
    assert (folder / "checkpoint" / "state.npz").is_file()
    assert not (folder / "cell.json").exists()
    first = (folder / "metrics.jsonl").read_text().splitlines()[0]
    done = run_cell(cell(asked, out), SILENT)
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert rows[0] == first and len(rows) == 3
    assert done.figures and not list(out.glob("*.stopped-*"))


def test_a_run_without_a_finished_round_begins_anew_and_the_old_folder_is_kept(make: Make, out: Path) -> None:
    asked = make([{"name": "a"}])
    (out / "a-seed0").mkdir(parents=True)
    (out / "a-seed0" / "config.yaml").write_text("left behind")
    run_cell(cell(asked, out), SILENT)
    assert (out / "a-seed0.stopped-1" / "config.yaml").read_text() == "left behind"


def test_a_failing_cell_is_named_and_the_others_run(make: Make, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = train

    def broken(config: Any, *rest: Any) -> Any:
        if config.adapter.rank == 1:
            raise DataError("the disk is on fire")
        if config.adapter.rank == 3:
            raise TypeError("a slip of ours")
        return original(config, *rest)

    monkeypatch.setattr(runs, "train", broken)
    asked = make(
        [{"name": "fire", "set": {"adapter.rank": 1}}, {"name": "good"}, {"name": "slip", "set": {"adapter.rank": 3}}]
    )
    finished = run_cells(cells_of(asked, out), 1, SILENT)
    assert [one.error for one in finished] == ["the disk is on fire", None, "TypeError: a slip of ours"]
    found = results(asked, finished, out)
    assert [one["cell"] for one in found["failures"]] == ["fire-seed0", "slip-seed0"]
    assert [row["cells"] for row in found["rows"]] == [0, 1, 0]
    assert found["comparisons"] == []
    monkeypatch.setattr(runs, "train", original)
    assert run_cells(cells_of(asked, out), 1, SILENT)[0].error is None  # once it is repaired


def test_a_finished_cell_with_other_settings_is_refused(make: Make, out: Path) -> None:
    zero = {"name": "a", "kind": "zero-shot"}
    run_cell(cell(make([zero]), out), SILENT)
    other = make([{**zero, "set": {"model.prompt": "scene"}}])
    with pytest.raises(RunError, match="other settings"):
        run_cell(cell(other, out), SILENT)


def test_a_cell_is_scored_under_what_score_says(make: Make, out: Path) -> None:
    asked = make(
        [{"name": "a", "set": {"data.labels": "basic"}, "score": {"data.labels": "compound"}}],
        base={"data": {"records": 200}},
    )
    assert run_cell(cell(asked, out), SILENT).error is None
    held = Scores.read(scores_file(out, "a", 0))
    assert held.targets.shape[1] == 11 and held.thresholds is None and held.slices == {}


def test_a_client_alone_learns_from_its_own_records_only(make: Make, out: Path) -> None:
    """Other clients' records may be anything: its adapter stays, bit for bit."""
    asked = make([{"name": "a", "kind": "local", "set": {"unsafe_deterministic_noise": True}}])
    bench = Bench(cell(asked, out).config, SILENT)
    before = train_locally(bench)
    first = bench.corpora.shares[0]
    others = np.concatenate(bench.corpora.shares[1:])
    bench.corpora.private.pixels[others] = 0  # type: ignore[attr-defined]
    after = train_locally(bench)
    assert np.array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])
    bench.corpora.private.pixels[first] = 0  # type: ignore[attr-defined]
    assert not np.array_equal(before[0], train_locally(bench)[0])


def test_central_noise_is_as_large_as_its_price_says(make: Make, out: Path) -> None:
    """Two first steps that differ in noise alone differ by sqrt(2) z C / (q N)."""
    asked = make(
        [
            {
                "name": "a",
                "kind": "central",
                "set": {
                    **PRIVATE,
                    "federation.rounds": 1,
                    "federation.aggregator": "fedavg",
                    "federation.server_lr": 1.0,
                    "privacy.sample_rate": 1.0,
                },
            }
        ]
    )
    bench = Bench(cell(asked, out).config, SILENT)
    ([one], epsilon), ([other], _) = train_centrally(bench), train_centrally(bench)
    trains = bench.scorer.adapter.trainable_entries(1)
    spread = float(np.std((one.astype(float) - other)[trains])) / np.sqrt(2)
    z = solve_budget(
        BudgetQuestion(mechanism="gaussian", delta=0.001, epsilon=8, rounds=1, sample_rate=1.0)
    ).noise_multiplier
    assert epsilon is not None and epsilon <= 8
    # Some 3,000 values: a relative error of 0.013; 0.1 is eight times that.
    assert spread == pytest.approx(z * 1.0 / 120, rel=0.1)


def test_a_central_step_takes_its_noise_off_as_the_servers_does(make: Make, out: Path) -> None:
    """The gradient is read off a plain step; the corrected step follows from it and the noise."""
    fixed = {**PRIVATE, "federation.rounds": 1, "unsafe_deterministic_noise": True, "adapter.head": "none"}
    fixed["adapter.warm_start"] = "none"
    fedavg = {"federation.aggregator": "fedavg", "federation.server_lr": 1.0}
    corrected = {"federation.server_lr": 0.1, "federation.noise_correction": True}
    kinds = {"plain": fedavg, "adam": {"federation.server_lr": 0.1}, "corrected": corrected}
    asked = make([{"name": n, "kind": "central", "set": fixed | more} for n, more in kinds.items()])
    benches = [Bench(one.config, SILENT) for one in cells_of(asked, out)]
    plain, adam, found = (train_centrally(bench)[0][0] for bench in benches)
    start = benches[0].initial
    moved = plain != start
    gradient = (start.astype(np.float64) - plain)[moved]
    z = solve_budget(
        BudgetQuestion(mechanism="gaussian", delta=0.001, epsilon=8, rounds=1, sample_rate=0.3)
    ).noise_multiplier
    u = (z / (0.3 * 120)) ** 2
    root = np.sqrt(np.maximum(gradient**2 - u, 0.1 * u))
    step = (start.astype(np.float64) - found)[moved]
    np.testing.assert_allclose(step, 0.1 * gradient / root, rtol=1e-3, atol=1e-6)
    assert not np.allclose(found, adam)


def test_a_central_cell_gets_the_noise_that_a_federated_one_gets(
    make: Make, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated: list[tuple[float, float]] = []
    observe = FedAdam.observe

    def overhear(self: FedAdam, share: float, noise_variance: float) -> None:
        stated.append((share, noise_variance))
        observe(self, share, noise_variance)

    monkeypatch.setattr(FedAdam, "observe", overhear)
    corrected = {**PRIVATE, "federation.noise_correction": True, "privacy.max_colluders": 0}
    corrected["adapter.warm_start"] = "none"  # whose steps have no noise
    asked = make([{"name": kind, "kind": kind, "set": corrected} for kind in ("central", "train")])
    for one in cells_of(asked, out):
        run_cell(one, SILENT)
    central, federated = stated[:2], stated[2:]
    assert len(central) == len(federated) == 2  # rounds
    assert {share for share, _ in stated} == {1.0}
    # One is Gaussian, the other a sum of Skellam shares at integer norms: a few percent.
    assert central[0][1] == pytest.approx(federated[0][1], rel=0.1)


def test_a_central_cell_begins_where_a_federated_one_begins(make: Make, out: Path) -> None:
    (one,) = cells_of(make([{"name": "a", "kind": "central", "set": PRIVATE}]), out)
    bench = Bench(one.config, SILENT)
    adapter, args = bench.scorer.adapter, (bench.corpora, bench.contexts, SILENT)
    assert adapter.head is not None
    adapter.head.weigh(0.0)  # alone, so that it begins on the way to its fit to public records
    alone = adapter.vector()
    plan = plan_run(request_of(one.config, bench.corpora, adapter.dimension))
    prepare(one.config, plan, bench.scorer, *args)
    begun = adapter.vector()
    assert not np.array_equal(begun, alone)
    adapter.load(alone)
    begin_as_federated(one.config, bench.scorer, *args)
    assert np.array_equal(adapter.vector(), begun)


def test_what_has_no_meaning_alone_is_refused(make: Make, out: Path) -> None:
    person = make([{"name": "a", "kind": "central", "set": {"privacy.unit": "person"}}])
    with pytest.raises(ConfigError, match="single records or nothing"):
        run_cell(cell(person, out), SILENT)
    steps = make([{"name": "b", "kind": "local", "set": {"federation.local_steps": 3}}])
    with pytest.raises(ConfigError, match="local_steps"):
        run_cell(cell(steps, out), SILENT)


def test_slices_are_known_for_the_drawn_corpus_only() -> None:
    from carefl_secure.data.records import BASIC, EMOTIC

    found = label_slices(EMOTIC.labels, drawn=True)
    names = {part: {EMOTIC.labels[i] for i in rows} for part, rows in found.items()}
    assert {"Surprise", "Anger", "Happiness"} <= names["face"]
    assert {"Engagement", "Confidence", "Yearning"} <= names["context"]
    assert not names["face"] & names["context"]
    assert label_slices(EMOTIC.labels, drawn=False) == {}
    assert label_slices(BASIC.labels, drawn=True) == {}


@pytest.mark.slow
def test_a_private_run_says_what_it_spent(make: Make, out: Path) -> None:
    done = run_cell(cell(make([{"name": "dp", "set": PRIVATE}]), out), SILENT)
    assert done.epsilon is not None and 4 < done.epsilon <= 8


@pytest.mark.slow
def test_cells_in_processes_of_their_own_give_the_same_figures(make: Make, out: Path) -> None:
    fixed = {"unsafe_deterministic_noise": True}
    asked = make([{"name": "a", "set": fixed}, {"name": "b", "kind": "zero-shot"}], seeds=(0, 1))
    parallel = run_cells(cells_of(asked, out / "two"), 2, SILENT)
    here = run_cells(cells_of(asked, out / "one"), 1, SILENT)
    assert [(one.variant, one.seed, one.figures) for one in parallel] == [
        (one.variant, one.seed, one.figures) for one in here
    ]
