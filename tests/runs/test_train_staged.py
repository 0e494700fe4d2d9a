"""Runs in stages: one cut, one promise, no context twice, and every way of going on or failing."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from carefl_secure.audit.audited_run import AuditedRun
from carefl_secure.cli import app
from carefl_secure.cli.reporter import show, to_json
from carefl_secure.config import Config, load_config
from carefl_secure.config.experiment import Cell, Experiment, Variant, cells_of
from carefl_secure.config.root import stage_config
from carefl_secure.deployment.site.own_work import Work
from carefl_secure.deployment.site.site_log import SiteLog
from carefl_secure.errors import ConfigError, DataError, PrivacyError, RunError
from carefl_secure.experiment.run import run_cell
from carefl_secure.federation.plan.calibrate import PlanRequest, earlier_spends, plan_stages
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server import run as rounds
from carefl_secure.federation.server import strategy
from carefl_secure.privacy import Ledger, epsilon
from carefl_secure.progress import SilentReporter
from carefl_secure.report.checks import check_run
from carefl_secure.report.run_record import read_run
from carefl_secure.report.spending import settle
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs import train as staged
from carefl_secure.runs.build import key_source
from carefl_secure.runs.evaluation.evaluate import evaluate
from carefl_secure.runs.evaluation.evaluator import Evaluator, final_figures
from carefl_secure.runs.staged_corpora import load_corpora, load_stages
from carefl_secure.runs.summary import RunSummary
from carefl_secure.runs.train import train

TARGET = 8.0
Settings = Callable[..., Config]


@pytest.fixture(scope="session")
def settings(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return a maker of small runs in two stages of two rounds, on a random model."""
    cache = tmp_path_factory.getbasetemp() / "corpora"
    words = {
        "model.base": base,
        "data.cache_dir": cache,
        "data.records": 160,
        "federation.clients": 4,
        "federation.rounds": 4,
        "simulation.dropout": 0,
        "privacy.delta": 0.001,
        "adapter.rank": 2,
        "adapter.last_layers": 1,
        "evaluation.baselines": "false",
        "stages.spaces": "[basic, compound]",
    }

    def make(root: Path, **more: object) -> Config:
        named = {key.replace("__", "."): value for key, value in more.items()}
        chosen = {**words, "run.dir": root, "run.name": "staged", **named}
        return load_config(None, [f"{k}={v}" for k, v in chosen.items() if v is not None])

    return make


@pytest.fixture(scope="session")
def scored() -> list[bytes]:
    """Return the adapters that the finished run has scored, filled by it."""
    return []


@pytest.fixture(scope="session")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory, scored: list[bytes]) -> RunSummary:
    score = Evaluator.__call__

    def noted(self: Evaluator, adapter: np.ndarray[Any, Any]) -> dict[str, float]:
        scored.append(adapter.tobytes())
        return score(self, adapter)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Evaluator, "__call__", noted)
        return train(settings(tmp_path_factory.mktemp("finished")), SilentReporter())


def of_stages(ledger: Path) -> dict[str, int]:
    """Count a ledger's spends by stage."""
    found: dict[str, int] = {}
    for entry in Ledger(ledger).entries():
        if entry.kind == "spend":
            found[entry.payload["run"]] = found.get(entry.payload["run"], 0) + 1
    return found


def price(ledger: Path) -> float:
    return epsilon(Ledger(ledger).events(), 0.001)


# the records


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"data__partition": "dirichlet", "data__alpha": 5},
        {"data__partition": "column", "data__column": "skin_tone"},
        {"privacy__unit": "person"},
        {"stages__spaces": "[compound, emotic, basic]"},
    ],
    ids=str,
)
def test_a_record_is_at_one_client_in_all_stages(settings: Settings, tmp_path: Path, more: dict[str, Any]) -> None:
    config = settings(tmp_path, **more)
    found = load_stages(config, SilentReporter())
    homes: list[dict[str, int]] = []
    for space, corpora in zip(config.stages.spaces, found, strict=True):
        records = corpora.private.records
        assert corpora.private.space.name == space
        assert sorted(np.concatenate(corpora.shares).tolist()) == list(range(len(records)))
        homes.append({records[i].key: c for c, s in enumerate(corpora.shares) for i in s.tolist()})
    widest = max(homes, key=len)
    assert len(widest) == 160 > min(map(len, homes)) > 0
    for home in homes:
        assert home.items() <= widest.items()
    open_keys = {r.key for c in found for part in (c.public, c.test) for r in part.records}
    assert not open_keys & set(widest)


def test_partitioning_each_stage_apart_would_move_records(settings: Settings, tmp_path: Path) -> None:
    """The test above can fail: the stages' own partitions disagree."""
    config = settings(tmp_path)
    homes = []
    for place in (0, 1):
        corpora = load_corpora(stage_config(config, place), SilentReporter())
        keys = [record.key for record in corpora.private.records]
        homes.append({keys[i]: c for c, share in enumerate(corpora.shares) for i in share.tolist()})
    assert any(homes[0][key] != client for key, client in homes[1].items())


def raf(root: Path, subset: str, names: dict[str, int]) -> None:
    """Write one subset of RAF-DB; the number is the label and the seed of the picture."""
    (root / subset / "EmoLabel").mkdir(parents=True)
    (root / subset / "Image" / "aligned").mkdir(parents=True)
    lines = []
    for place, (name, seed) in enumerate(names.items()):
        lines.append(f"{name}.jpg {1 + place % 7}")
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        path = root / subset / "Image" / "aligned" / f"{name}_aligned.jpg"
        Image.fromarray(pixels).save(path, format="PNG")
    (root / subset / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines) + "\n")


def numbered(split: str, count: int, first: int) -> dict[str, int]:
    return {f"{split}_{i:05d}": first + i for i in range(count)}


def test_pictures_that_two_stages_of_a_folder_share_are_left_out_of_the_first(
    settings: Settings, tmp_path: Path
) -> None:
    raf(tmp_path / "raf", "basic", numbered("train", 30, 0) | numbered("test", 6, 100))
    # five of its training pictures are basic ones under other names, two of them basic test ones
    twins = {f"train_{i:05d}": s for i, s in enumerate([3, 4, 5, 101, 102])}
    others = {f"train_{i:05d}": 200 + i for i in range(5, 30)}
    raf(tmp_path / "raf", "compound", twins | others | numbered("test", 6, 300))
    more = {"data__source": tmp_path / "raf", "data__records": None}
    basic, compound = load_stages(settings(tmp_path, **more), SilentReporter())
    assert len(compound.private.records) + len(compound.public.records) == 30
    assert len(basic.private.records) + len(basic.public.records) == 27
    assert len(basic.test.records) == 4
    pictures = [
        {c.image(i).tobytes() for c in (one.private, one.public, one.test)
         for i in range(len(c.records))}
        for one in (basic, compound)
    ]  # fmt: skip
    assert not pictures[0] & pictures[1]


def test_a_stage_without_pictures_of_its_own_is_refused(settings: Settings, tmp_path: Path) -> None:
    for subset in ("basic", "compound"):
        raf(tmp_path / "raf", subset, numbered("train", 30, 0) | numbered("test", 6, 100))
    more = {"data__source": tmp_path / "raf", "data__records": None}
    with pytest.raises(DataError, match="also stands in a later stage"):
        load_stages(settings(tmp_path, **more), SilentReporter())


# the promise


def test_one_ledger_holds_both_stages_within_one_target(finished: RunSummary) -> None:
    folder = RunFolder.open(finished.folder)
    spends = of_stages(folder.ledger)
    assert spends == {"staged/1-basic": 2, "staged/2-compound": 2}
    assert 0.999 * TARGET < price(folder.ledger) <= TARGET
    for index in range(4):
        assert of_stages(folder.client_ledger(index)) == spends
        assert price(folder.client_ledger(index)) <= TARGET
    rows = folder.read_metrics()
    assert [(row["stage"], row["round"]) for row in rows] == [
        ("1-basic", 1), ("1-basic", 2), ("2-compound", 3), ("2-compound", 4),
    ]  # fmt: skip
    claimed = [float(row["epsilon"]) for row in rows]
    assert claimed == sorted(claimed) and claimed[-1] == pytest.approx(price(folder.ledger))
    assert finished.promise.count("epsilon 8, delta 0.001") == 1
    assert [stage.name for stage in finished.stages] == ["1-basic", "2-compound"]
    assert finished.after == finished.stages[-1].after != finished.stages[-1].before


def test_the_plan_of_both_stages_stood_before_the_first_round(finished: RunSummary) -> None:
    plan = json.loads((finished.folder / "plan.json").read_text())
    one, two = plan["stages"]
    assert plan["privacy"]["rounds"] == 4
    assert [s["privacy"]["rounds"] for s in (one, two)] == [2, 2]
    assert one["privacy"]["public_records"] == 160 > two["privacy"]["public_records"] > 0
    assert one["privacy"]["noise_multiplier"] == two["privacy"]["noise_multiplier"] > 0
    assert one["privacy"]["target_epsilon"] == two["privacy"]["target_epsilon"] == TARGET
    first = Ledger(finished.folder / "ledger.jsonl").entries()[0]
    assert (finished.folder / "plan.json").stat().st_mtime <= datetime.fromisoformat(first.time).timestamp()


@pytest.mark.parametrize("unit", ["record", "none"])
def test_stages_cost_what_their_rounds_cost_together(unit: str) -> None:
    common: dict[str, Any] = {
        "unit": unit, "dimension": 60, "clients": 6, "sample_rate": 0.2, "clipping_norm": 1.0,
        "delta": 1e-5, "target_epsilon": None if unit == "none" else 4.0,
    }  # fmt: skip
    each: list[dict[str, Any]] = [
        {**common, "rounds": 5, "public_records": 900},
        {**common, "rounds": 3, "public_records": 300},
    ]
    plan = plan_stages(["1-a", "2-b"], [PlanRequest(**one) for one in each])
    assert plan.privacy.rounds == 8
    assert len({one.hash() for one in plan.plans}) == 2
    if unit == "none":
        assert not any(one.protected for one in plan.plans)
        return
    events = [one.event.times(one.privacy.rounds) for one in plan.plans if one.event]
    assert 0.999 * 4 < epsilon(events, 1e-5) <= 4
    assert all(epsilon([event], 1e-5) < 3.7 for event in events)
    with pytest.raises(ConfigError, match="the promise is one"):
        plan_stages(["1-a", "2-b"], [PlanRequest(**each[0]), PlanRequest(**each[1] | {"delta": 1e-6})])


def test_no_context_and_no_key_is_used_in_two_stages(settings: Settings, tmp_path: Path) -> None:
    """Even where plan, roster, base and adapter are the very same."""
    common: dict[str, Any] = {
        "unit": "none", "dimension": 60, "clients": 4, "sample_rate": 0.2, "clipping_norm": 1.0,
        "delta": 1e-5, "target_epsilon": None, "rounds": 2, "public_records": 100,
    }  # fmt: skip
    plan = plan_stages(["1-a"], [PlanRequest(**common)]).plans[0]
    roster = tuple(bytes([i]) * 32 for i in range(4))
    contexts = set()
    for stage in ("", "1-basic", "2-compound"):
        run = RunFolder(tmp_path / "run", stage).run_id.encode()
        cohort = Cohort(run, roster, bytes(32))
        contexts.add(cohort.round_parameters(plan, 1, bytes(32)).context())
    assert len(contexts) == 3
    config = settings(tmp_path, unsafe_deterministic_noise="true")
    keys = {key_source(config, s)(i).key("noise") for s in ("", "1-a", "2-b") for i in (0, 1)}
    assert len(keys) == 6


def test_hashes_of_agreement_differ_from_stage_to_stage(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    more = {"stages__handover": "restart", "federation__rounds": 2, "privacy__unit": "none"}
    train(settings(tmp_path, **more), SilentReporter())
    assert len({call["folder"].run_id for call in seen}) == 2
    assert len({call["base_hash"] for call in seen}) == 2
    assert len({call["plan"].hash() for call in seen}) == 2


def test_a_resumed_run_does_not_count_its_own_stages_as_history(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "0.jsonl", {"client": "0"})
    event = plan_stages(
        ["1-a"],
        [
            PlanRequest(
                unit="record", dimension=60, clients=4, sample_rate=0.2, rounds=1,
                clipping_norm=1.0, delta=1e-5, target_epsilon=4.0, public_records=100,
            )
        ],
    ).plans[0].event  # fmt: skip
    assert event is not None
    for run in ("one/1-basic", "one/2-compound", "one-more"):
        book.append("spend", {"run": run, "round": 1, "event": event.to_json()})
    assert earlier_spends(tmp_path, 1) == {((event, event), (event,))}
    assert earlier_spends(tmp_path, 1, "one") == {((event,), ())}


# going on after a stop


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Interrupt the so-manieth round after all have paid and sent, before it is opened."""
    original, count = strategy.decode, [0]

    def decode(*args: Any) -> Any:
        count[0] += 1
        if count[0] == number:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(strategy, "decode", decode)


@pytest.mark.parametrize(
    ("stopped", "rounds_run"),
    [
        (1, [1, 3, 4]),
        pytest.param(2, [1, 3, 4], marks=pytest.mark.slow),
        pytest.param(3, [1, 2, 3], marks=pytest.mark.slow),
        (4, [1, 2, 3]),
    ],
)
def test_an_interrupted_run_goes_on_and_pays_for_what_it_lost(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int, rounds_run: list[int]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, stopped)
        with pytest.raises(KeyboardInterrupt):
            train(settings(tmp_path), SilentReporter())
    folder = RunFolder.open(tmp_path / "staged")
    before = len(Ledger(folder.ledger).events())
    assert before == stopped
    config = load_config(folder.config, ())
    summary = train(config, SilentReporter(), resume=folder.path)
    assert [row["round"] for row in summary.rows] == rounds_run
    assert len(Ledger(folder.ledger).events()) == 4
    assert price(folder.ledger) <= TARGET
    for index in range(4):
        # every vector that left a client is in its ledger: those of the lost round too
        assert len(Ledger(folder.client_ledger(index)).events()) == 4
    # what the run says at its end counts the lost round, the last of all too
    assert "epsilon 8, delta 0.001" in summary.promise
    assert float(summary.rows[-1]["epsilon"]) <= price(folder.ledger)
    assert [stage.name for stage in summary.stages] == ["1-basic", "2-compound"]
    assert verdicts(folder.path) == []
    with pytest.raises(RunError, match="nothing to resume"):
        train(config, SilentReporter(), resume=folder.path)
    assert len(Ledger(folder.ledger).events()) == 4


@pytest.mark.slow
def test_a_stop_between_the_stages_costs_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(spec: Any, *args: Any, **options: Any) -> Any:
        if spec.stage.number == 2:
            raise KeyboardInterrupt
        return rounds.run_federation(spec, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(staged, "run_federation", refuse)
        with pytest.raises(KeyboardInterrupt):
            train(settings(tmp_path), SilentReporter())
    run = tmp_path / "staged"
    summary = train(load_config(run / "config.yaml", ()), SilentReporter(), resume=run)
    assert [row["round"] for row in summary.rows] == [1, 2, 3, 4]
    assert len(Ledger(run / "ledger.jsonl").events()) == 4


def test_a_checkpoint_of_another_plan_or_without_its_stage_is_refused(
    settings: Settings, tmp_path: Path, finished: RunSummary
) -> None:
    run = tmp_path / "staged"
    shutil.copytree(finished.folder, run)
    shutil.rmtree(run / "adapter")
    with pytest.raises(RunError, match="another plan"):
        train(settings(tmp_path, privacy__epsilon=4), SilentReporter(), resume=run)
    folder = RunFolder.open(run)
    state = dict(folder.read_checkpoint())
    for wrong in ({"stage": 9}, {"stage": None}, {"earlier.1": None}):
        folder.write_checkpoint({k: v for k, v in {**state, **wrong}.items() if v is not None})
        with pytest.raises(RunError, match="restore it from a copy"):
            train(settings(tmp_path), SilentReporter(), resume=run)


# what is handed over


def watch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Keep what every stage was begun with and ended with."""
    seen: list[dict[str, Any]] = []

    def run(spec: Any, initial: Any, optimizer: Any, **options: Any) -> Any:
        result = rounds.run_federation(spec, initial, optimizer, **options)
        seen.append(
            {**vars(spec), "plan": spec.plan, "initial": initial, "ended": result.adapter, "optimizer": optimizer}
        )
        return result

    monkeypatch.setattr(staged, "run_federation", run)
    return seen


def head_size(run: Path) -> int:
    return sum(value.size for value in load_file(run / "adapter" / "label_head.safetensors").values())


@pytest.mark.parametrize("handover", ["carry", "restart", "merge"])
def test_each_handover_begins_with_what_it_says(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handover: str
) -> None:
    seen = watch(monkeypatch)
    more = {"stages__handover": handover, "federation__rounds": 2, "privacy__unit": "none"}
    summary = train(settings(tmp_path, **more), SilentReporter())
    first, second = seen
    assert first["ended"].any() and not np.array_equal(first["ended"], second["ended"])
    # a merged stage begins with a fresh B on the frozen one; the label head, last in the vector, is not stacked
    head = len(first["ended"]) - head_size(summary.folder)
    stacked = np.concatenate([np.zeros(head, np.float32), first["ended"][head:]])
    wanted = {"carry": first["ended"], "restart": first["initial"], "merge": stacked}[handover]
    np.testing.assert_array_equal(second["initial"], wanted)
    before = summary.stages[1].before
    if handover == "restart":
        assert before == summary.before
    else:  # the first stage lives on
        assert before != summary.before
    # whoever loads the saved adapter gets the scores of the run
    said = json.loads((summary.folder / "adapter" / "adapter_config.json").read_text())
    assert said["r"] == (4 if handover == "merge" else 2)
    again = evaluate(summary.folder, SilentReporter()).evaluation
    # a merged adapter of twice the rank adds up in another order, so records whose scores all but tie may swap
    tolerance = 0.01 if handover == "merge" else 1e-6
    assert again.figures["mAP"] == pytest.approx(summary.after["mAP"], abs=tolerance)
    assert handover == "merge" or not any("the run itself measured" in remark for remark in again.remarks)


def test_a_merged_run_resumes_with_its_frozen_half(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        config = settings(tmp_path, stages__handover="merge", privacy__unit="none")
        with pytest.raises(KeyboardInterrupt):
            train(config, SilentReporter())
    run = tmp_path / "staged"
    frozen = RunFolder.open(run).read_checkpoint()["earlier.1"]
    summary = train(load_config(run / "config.yaml", ()), SilentReporter(), resume=run)
    # without privacy nothing is lost by doing the round again
    assert [row["round"] for row in summary.rows] == [1, 2, 3, 4]
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    halves = [saved[name][:, :2].ravel() for name in saved if "lora_B" in name]
    first = np.asarray(frozen)[: -head_size(run)]
    assert sorted(np.concatenate(halves).tolist()) == sorted(first.tolist())
    with pytest.raises(RunError, match=r"stages\.handover=carry"):
        AuditedRun(run, SilentReporter())


# what reads a run


def verdicts(run: Path) -> list[str]:
    """Return the checks that failed."""
    record = read_run(run)
    checks = check_run(record, settle(record))
    return [f"{c.name}: {c.detail}" for c in checks if c.outcome == "failed"]


def test_report_ledger_and_audit_read_a_staged_run(finished: RunSummary) -> None:
    run = finished.folder
    assert verdicts(run) == []
    for words in (["report", str(run)], ["ledger", "verify", str(run)], ["status", str(run)]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["verdict"] == "accounted"
    assert report["promise"]["epsilon"] == pytest.approx(price(run / "ledger.jsonl"))
    assert "basic, then compound" in report["run"]["data"]
    subject = AuditedRun(run, SilentReporter())
    assert subject.corpora.private.space.name == "compound"
    assert epsilon(subject.planned, 0.001) == pytest.approx(price(run / "ledger.jsonl"))
    head = subject.initial.size - head_size(run)
    assert subject.tuned.any() and not subject.initial[:head].any()


def test_the_report_sees_a_stage_that_paid_for_another_event_than_planned(
    finished: RunSummary, tmp_path: Path
) -> None:
    run = tmp_path / "staged"
    shutil.copytree(finished.folder, run)
    entries = Ledger(run / "ledger.jsonl").entries()
    (run / "ledger.jsonl").unlink()
    cheap = Ledger(run / "ledger.jsonl", {"run": "staged"})
    for entry in entries[1:]:
        payload = dict(entry.payload)
        if entry.kind == "spend" and payload["run"] == "staged/2-compound":
            payload["event"] = {**payload["event"], "sample_rate": 0.1}
        cheap.append(entry.kind, payload)
    assert [line for line in verdicts(run) if line.startswith("events")]


def test_the_report_sees_a_stage_with_more_rounds_and_a_whole_that_does_not_fit(
    finished: RunSummary, tmp_path: Path
) -> None:
    run = tmp_path / "staged"
    shutil.copytree(finished.folder, run)
    ledger = Ledger(run / "ledger.jsonl", {"run": "staged"})
    spend = next(e for e in ledger.entries() if e.payload.get("run") == "staged/1-basic")
    ledger.append("spend", dict(spend.payload))
    found = verdicts(run)
    assert any("3 rounds of staged/1-basic were charged" in line for line in found)
    plan = json.loads((run / "plan.json").read_text())
    plan["stages"][0]["privacy"]["delta"] = 1e-9
    (run / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PrivacyError, match="the promise is one"):
        read_run(run)


def test_a_cell_of_an_experiment_honours_its_stages(settings: Settings, tmp_path: Path) -> None:
    config = settings(tmp_path, run__name="two-seed0", federation__rounds=2, privacy__unit="none")
    done = run_cell(Cell(Variant(name="two"), 0, config, config), SilentReporter())
    assert done.error is None and 0 < done.figures["mAP"] <= 1
    rows = RunFolder.open(tmp_path / "two-seed0").read_metrics()
    assert [row["stage"] for row in rows] == ["1-basic", "2-compound"]
    assert math.isclose(done.figures["mAP"], float(rows[-1]["mAP"]), abs_tol=1e-6)


def test_no_stage_scores_its_final_adapter_twice(finished: RunSummary, scored: list[bytes]) -> None:
    # Untuned; and in both stages the adapter it begins with and that of each of two rounds.
    assert len(scored) == 1 + 2 * 3
    for stage in finished.stages:
        last = [row for row in finished.rows if row["stage"] == stage.name][-1]
        assert stage.after == {name: last[name] for name in stage.before}


def test_a_final_adapter_whose_round_was_not_scored_is_scored_now() -> None:
    adapter = np.ones(3, np.float32)
    asked: list[float] = []

    def evaluate(given: np.ndarray[Any, Any]) -> dict[str, float]:
        asked.append(float(given.sum()))
        return {"mAP": 0.5}

    known = final_figures({"round": 2, "mAP": 0.25}, {"mAP": 0.1}, evaluate, adapter)
    assert known == {"mAP": 0.25} and not asked
    assert final_figures({"round": 2}, {"mAP": 0.1}, evaluate, adapter) == {"mAP": 0.5}
    assert asked == [3.0]


def test_the_summary_lists_every_stage_and_promises_once(
    finished: RunSummary, capsys: pytest.CaptureFixture[str]
) -> None:
    show(finished)
    shown = capsys.readouterr().out
    for name in ("before 1-basic", "after 1-basic", "before 2-compound", "after 2-compound"):
        assert shown.count(name) == 1
    assert len(re.findall(r"(?m)^ *untuned ", shown)) == 1 and shown.count("Protected is") == 1
    stated = json.loads(to_json(finished))
    assert [stage["name"] for stage in stated["stages"]] == ["1-basic", "2-compound"]
    assert stated["stages"][1]["after"] == stated["after"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"federation__aggregator": "feddyn", "privacy__unit": "none"},
        {"privacy__trust": "none"},
        {"privacy__unit": "person"},
        {"adapter__train": "alternate", "stages__handover": "merge"},
        {"federation__aggregation": "committee", "stages__handover": "restart"},
        {"federation__aggregation": "encrypted"},
        {"model__context": "own"},
        {"stages__spaces": "[emotic, basic, compound]", "stages__handover": "merge"},
    ],
    ids=str,
)
def test_every_choice_runs_in_stages(settings: Settings, tmp_path: Path, more: dict[str, Any]) -> None:
    summary = train(settings(tmp_path, **more), SilentReporter())
    assert [row["round"] for row in summary.rows] == [1, 2, 3, 4]
    assert verdicts(summary.folder) == []
    again = evaluate(summary.folder, SilentReporter()).evaluation
    # A merged adapter adds up in another order, which may swap two records whose scores all but tie.
    tolerance = 0.01 if more.get("stages__handover") == "merge" else 1e-6
    assert again.figures["mAP"] == pytest.approx(summary.after["mAP"], abs=tolerance)
    if more.get("federation__aggregator") == "feddyn":
        kept = list((summary.folder / "clients" / "0").glob("feddyn-*.bin"))
        assert len(kept) == 2  # a stage begins with a fresh correction


# bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stages", "basic"], "two different label spaces"),
        (["--stages", "basic,basic"], "two different label spaces"),
        (["--stages", "basic,fun"], "must be 'emotic', 'basic' or 'compound'"),
        (["--stages", ""], "stages.spaces"),
        (["--stages", "basic,compound", "--set", "data.labels=basic"], "contradicts stages.spaces"),
        (["--stages", "basic,compound", "--set", "stages.rounds=[1,2,3]"], "3 numbers for 2"),
        (["--stages", "basic,compound", "--set", "stages.rounds=[1,2]"], "federation.rounds=3"),
        (["--stages", "basic,compound", "--rounds", "1"], "without a round"),
        (["--set", "stages.handover=merge"], "no effect without stages.spaces"),
        (["--stages", "basic,compound", "--engine", "superlink"], "has no SuperLink"),
        (["--stages", "basic,compound", "--set", "federation.public_records=9"], "leave it out"),
        (
            ["--stages", "basic,compound", "--rounds", "2", "--set", "adapter.train=alternate",
             "--set", "stages.handover=restart"],
            "even number",
        ),
    ],
)  # fmt: skip
def test_stages_that_make_no_sense_are_refused(words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["train", "--quiet", *words])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())


def test_too_few_records_in_a_stage_are_refused(settings: Settings, tmp_path: Path) -> None:
    config = settings(tmp_path, data__records=20, federation__clients=16)
    with pytest.raises(ConfigError, match="no record with compound labels"):
        load_stages(config, SilentReporter())


@pytest.mark.parametrize("kind", ["local", "central"])
def test_cells_that_are_not_federated_have_no_stages(tmp_path: Path, kind: str) -> None:
    settings = {"stages.spaces": ["basic", "compound"]}
    asked = Experiment.model_validate(
        {"name": "x", "question": "?", "seeds": [0], "reference": "a",
         "cells": [{"name": "a", "kind": kind, "set": settings}]}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="stages belong to a federated run"):
        cells_of(asked, tmp_path)


def test_a_site_takes_part_in_one_stage_only(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="joins one stage"):
        Work(settings(tmp_path), cast(RunPlan, None), 0, False, SiteLog(tmp_path))


def test_one_stage_is_untouched_by_all_this(settings: Settings, tmp_path: Path) -> None:
    more = {"stages__spaces": None, "privacy__unit": "none", "data__labels": "compound"}
    summary = train(settings(tmp_path, **more), SilentReporter())
    assert summary.stages == ()
    assert "stage" not in summary.rows[0]
    assert "stages" not in json.loads((summary.folder / "plan.json").read_text())


def test_a_stage_after_an_odd_number_of_rounds_trains_the_half_that_clients_send(
    settings: Settings, tmp_path: Path
) -> None:
    """Each stage has one round; the second one's number is even."""
    words = {"federation__rounds": 2, "privacy__unit": "none", "stages__handover": "carry"}
    summary = train(settings(tmp_path, adapter__train="alternate", **words), SilentReporter())
    assert [row["round"] for row in summary.rows] == [1, 2]
    saved = load_file(summary.folder / "adapter" / "adapter_model.safetensors")
    assert all(any(tensor.any() for name, tensor in saved.items() if half in name) for half in ("lora_A", "lora_B"))
