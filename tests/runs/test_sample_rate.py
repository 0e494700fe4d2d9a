"""`privacy.sample_rate` under ``auto``: the rule, where it holds, and that one number is used in all of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import load_file

from carefl_secure.config import Config, dump_config, load_config
from carefl_secure.errors import ConfigError
from carefl_secure.experiment.scores import Bench, train_centrally
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy import Ledger, epsilon
from carefl_secure.progress import SilentReporter
from carefl_secure.report.build import build_report
from carefl_secure.report.run_record import read_run
from carefl_secure.run_folder import Interrupted
from carefl_secure.runs import build, plan_from_config, sample_rate
from carefl_secure.runs.evaluation import evaluator
from carefl_secure.runs.plan_from_config import correlation_of, plan_with
from carefl_secure.runs.prepare import plan_only
from carefl_secure.runs.sample_rate import rate_of_head, resolve_sample_rate
from carefl_secure.runs.staged_corpora import stage_configs
from carefl_secure.runs.train import train

RECORDS = 160


class Stop(SilentReporter):
    """Interrupts a run after its first round."""

    def round(self, row: Any) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what fixes the share of the base's own scores in every run: at 0 the head is alone."""
    return lambda share: monkeypatch.setattr(build, "base_share", lambda *_, **__: share)


@pytest.fixture
def small(base: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    words = [f"model.base={base}", f"data.cache_dir={tmp_path_factory.getbasetemp() / 'corpora'}"]
    words += [f"run.dir={tmp_path}", f"data.records={RECORDS}", "federation.rounds=2", "federation.clients=4"]
    words += ["simulation.dropout=0", "privacy.delta=0.001", "adapter.rank=2", "evaluation.baselines=false"]

    def make(*more: str) -> Config:
        chosen = {word.split("=")[0]: word for word in [*words, *more]}
        return load_config(None, list(chosen.values()))

    return make


def plan_of(folder: Path) -> RunPlan:
    return RunPlan.from_json(json.loads((folder / "plan.json").read_text()))


@pytest.mark.parametrize(
    ("words", "units", "rate"),
    [
        ((), 1750, 0.5),
        ((), 3200, 0.5),
        ((), 5000, 0.32),
        ((), 7001, 0.23),
        ((), 8000, 0.2),
        ((), 1_000_000, 0.2),
        (("privacy.unit=person",), 4100, 0.39),
        (("privacy.unit=none",), 60, 1.0),
        (("privacy.unit=none",), 1600, 1.0),
        (("privacy.unit=none",), 1750, 0.91),
        (("privacy.unit=none",), 9000, 0.2),
        (("privacy.mechanism=banded", "privacy.bands=3"), 1750, 0.33),
        (("privacy.mechanism=banded", "privacy.bands=5"), 1750, 0.2),
    ],
)
def test_a_head_alone_draws_1600_records_or_as_near_as_it_may(words: tuple[str, ...], units: int, rate: float) -> None:
    config = load_config(None, words)
    assert rate_of_head(config, units) == rate
    found = config.with_sample_rate(rate)
    if config.privacy.mechanism == "banded":
        assert len(correlation_of(found) or ()) == config.privacy.bands
    assert load_config(None, [*words, f"privacy.sample_rate={rate}"]) == found


def adapter_of(share: float | None) -> Any:
    return SimpleNamespace(head=None if share is None else SimpleNamespace(alone=share == 0))


def corpora_of(subjects: list[str]) -> Any:
    records = [SimpleNamespace(subject=subject) for subject in subjects]
    return SimpleNamespace(private=SimpleNamespace(records=records))


def test_a_number_stands_and_only_a_head_alone_changes_the_default() -> None:
    held = corpora_of([f"p{i // 2}" for i in range(8400)])
    given = load_config(None, ["privacy.sample_rate=0.01"])
    assert resolve_sample_rate(given, held, adapter_of(0.0)) == (given, "")
    default = load_config()
    assert default.privacy.sample_rate == "auto" and "sample_rate: auto" in dump_config(default)
    for share in (None, 0.6):
        config, said = resolve_sample_rate(default, held, adapter_of(share))
        assert config.sample_rate == 0.2 and said.startswith("sampling rate 0.2: more than")
    config, said = resolve_sample_rate(load_config(None, ["privacy.unit=person"]), held, adapter_of(0.0))
    assert config.sample_rate == 0.38 and "about 1,596 of 4,200 persons" in said
    declared = load_config(None, ["federation.public_records=2000", "privacy.unit=none"])
    config, said = resolve_sample_rate(declared, corpora_of([]), adapter_of(0.0))  # as a server, which holds none
    assert config.sample_rate == 0.8 and "about 1,600 of 2,000 records" in said


def test_what_is_not_resolved_plans_no_run() -> None:
    for reader in (plan_from_config.central_budget, lambda config: config.sample_rate):
        with pytest.raises(ConfigError, match=r"privacy\.sample_rate=auto is not resolved"):
            reader(load_config())
    with pytest.raises(ConfigError, match="not resolved"):
        plan_from_config.request_of(load_config(), corpora_of(["a"] * 900), 50)
    assert plan_with(load_config(), 900, 50).privacy.sample_rate == 0.2


@pytest.mark.parametrize(
    "words", [("privacy.unit=client",), ("privacy.trust=none", "adapter.train=B"), ("adapter.head=none",)]
)
def test_without_a_head_the_default_is_known_from_the_start(words: tuple[str, ...]) -> None:
    assert load_config(None, words).sample_rate == 0.2


def test_a_run_uses_the_resolved_rate_everywhere_and_keeps_the_promise(
    small: Callable[..., Config], settle: Callable[[float], None]
) -> None:
    settle(0.0)
    summary = train(small(), SilentReporter())
    folder, plan = summary.folder, plan_of(summary.folder)
    assert plan.privacy.sample_rate == 0.5 and plan.privacy.expected_batch == RECORDS / 2
    assert load_config(folder / "config.yaml").privacy.sample_rate == 0.5
    said = json.loads((folder / "preparation.json").read_text())["sample_rate"]
    assert said == f"sampling rate 0.5, about 80 of {RECORDS} records in a round: only a label head is trained"
    ledgers = [Ledger(folder / "ledger.jsonl"), *(Ledger(folder / f"clients/{i}/ledger.jsonl") for i in range(4))]
    for ledger in ledgers:
        assert {event.sample_rate for event in ledger.events()} == {0.5} and len(ledger.events()) == 2
        assert 7.5 < epsilon(ledger.events(), 0.001) <= 8
    report, _ = build_report(read_run(folder))
    assert report.verdict == "accounted" and report.mechanism.sample_rate == 0.5
    assert f"S{said[1:]}." in report.preparation


def test_where_the_base_counts_the_plan_is_that_of_the_former_default(
    small: Callable[..., Config], settle: Callable[[float], None]
) -> None:
    settle(0.6)
    config, found = small(), plan_only(small(), SilentReporter())
    former = small("privacy.sample_rate=0.2")
    plan = plan_with(former, RECORDS, found["plan"]["encoding"]["dimension"])
    assert found["plan"] == plan.to_json() == plan_only(former, SilentReporter())["plan"]
    assert "sampling rate 0.2: more than a label head is trained" in found["budget"]
    settle(0.0)
    assert plan_only(config, SilentReporter())["plan"]["privacy"]["sample_rate"] == 0.5
    assert plan_only(small("privacy.unit=none"), SilentReporter())["plan"]["privacy"]["sample_rate"] == 1.0


def test_all_stages_share_the_default(small: Callable[..., Config], settle: Callable[[float], None]) -> None:
    settle(0.0)  # which stages do not ask
    config = small("stages.spaces=[basic,compound]", "data.records=300")
    found = plan_only(config, SilentReporter())
    assert found["plan"]["privacy"]["sample_rate"] == 0.2 and "sampling rate 0.2: more than" in found["budget"]
    resolved, _ = resolve_sample_rate(config, corpora_of(["a"] * 300), adapter_of(1.0))
    assert [one.sample_rate for one in stage_configs(resolved)] == [0.2, 0.2]


def test_a_resumed_run_keeps_its_rate(
    small: Callable[..., Config], settle: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(0.0)
    config = small("run.name=stopped")
    with pytest.raises(Interrupted) as stop:
        train(config, Stop())
    kept = plan_of(stop.value.folder)
    monkeypatch.setattr(sample_rate, "_MOST", 0.25)  # as under the rule of another version
    assert plan_only(config, SilentReporter())["plan"]["privacy"]["sample_rate"] == 0.25
    settle(0.4)  # another machine finds another share; the run goes on as it began
    summary = train(config, SilentReporter(), resume=stop.value.folder)
    weights = load_file(summary.folder / "adapter" / "adapter_model.safetensors")
    assert not any(value.any() for name, value in weights.items() if "lora_B" in name)
    assert len(summary.rows) == 2 and plan_of(summary.folder) == kept and kept.privacy.sample_rate == 0.5
    assert {event.sample_rate for event in Ledger(summary.folder / "ledger.jsonl").events()} == {0.5}


def test_central_cell_and_private_regression_take_the_rate_of_the_federated_run(
    small: Callable[..., Config], settle: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from carefl_secure.experiment import scores

    settle(0.0)
    rates: list[float] = []
    for module in (scores, evaluator):
        draw = module.poisson_sample
        monkeypatch.setattr(module, "poisson_sample", lambda n, q, s, draw=draw: rates.append(q) or draw(n, q, s))
    bench = Bench(small(), SilentReporter())
    _, spent = train_centrally(bench)
    asked = plan_from_config.central_budget(small("privacy.sample_rate=0.5"))
    assert rates == [0.5, 0.5] and spent == asked.epsilon
    rates.clear()
    train(small("evaluation.baselines=true"), SilentReporter())
    assert rates == [0.5, 0.5]
