"""What a run does on public records before its first round: forecast, confirmation, pilot, warm start, language."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from carefl_secure.cli import app
from carefl_secure.cli.console import confirmation
from carefl_secure.config import Config, load_config
from carefl_secure.errors import RunError, UnconfirmedError
from carefl_secure.federation.plan.calibrate import plan_run
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.model.generation import perplexity
from carefl_secure.progress import SilentReporter
from carefl_secure.report.build import _preparation
from carefl_secure.runs.build import label_scorer, make_optimizer
from carefl_secure.runs.forecast import Forecast
from carefl_secure.runs.pilot import _best, choose_rate, grid_rate, pilot_noise, pilot_size, rule_rate
from carefl_secure.runs.plan_from_config import plan_with, request_of
from carefl_secure.runs.prepare import close_record, language_sentence, prepare, read_record, write_record
from carefl_secure.runs.sample_rate import resolve_sample_rate
from carefl_secure.runs.staged_corpora import load_corpora

PHOTOGRAPHS = Forecast(
    update=0.41, noise=176.556, rounds=20, batch=12, values=1_244_160, few=184_320, rank=8, unit="records"
)
"""Sixty photographs at epsilon 8 with all seven layers of a 256M model."""


def test_sixty_photographs_are_refused_with_what_they_would_need() -> None:
    assert PHOTOGRAPHS.lost
    sentence = PHOTOGRAPHS.sentence()
    assert "99.99 % of what is opened is noise" in sentence and "noise alone" in sentence
    records, values = PHOTOGRAPHS.advice()
    assert int(records.split()[1].replace(",", "")) == pytest.approx(12 * 176.556 / 0.41 / math.sqrt(20), rel=0.01)
    assert "trained values in place of 1,244,160" in values and "times as many" in records


def test_advice_leads_to_a_run_that_is_not_noise() -> None:
    near = replace(PHOTOGRAPHS, noise=4.0)
    assert not near.lost and near.ratio < 1
    rank = int(near.advice()[1].split("=")[1])
    assert replace(near, noise=near.noise * math.sqrt(rank / 8)).ratio >= 1
    few = replace(PHOTOGRAPHS, noise=6.0)
    assert "adapter.targets=[q,v] with adapter.rank=" in few.advice()[1]
    enough = replace(PHOTOGRAPHS, noise=1.0)
    assert enough.advice() == [] and "needs" not in enough.sentence()
    head = replace(near, values=4039, rank=0, enough=5.0)
    assert head.advice() == [
        f"about {math.ceil(12 * 5 / near.ratio)} records per round, {5 / near.ratio:.3g} times as many"
    ]
    free = replace(PHOTOGRAPHS, noise=0.0)
    assert not free.lost and free.to_json()["signal_to_noise"] is None


def adapter_of(layers: int, width: int, dimension: int = 50) -> Any:
    text = SimpleNamespace(num_hidden_layers=layers, hidden_size=width)
    config = SimpleNamespace(text_config=text)
    base = SimpleNamespace(model=SimpleNamespace(config=config))
    entries = {
        "trainable_entries": lambda number: np.ones(dimension, bool),
        "head_entries": lambda: np.zeros(dimension),
    }
    return SimpleNamespace(base=base, dimension=dimension, train="B", head=None, **entries)


@pytest.mark.parametrize(
    ("layers", "width", "rate"), [(4, 128, 0.03), (30, 576, 0.001), (32, 960, 0.001), (24, 2048, 0.001)]
)
def test_the_rule_gives_the_known_good_rates(layers: int, width: int, rate: float) -> None:
    assert rule_rate(adapter_of(layers, width)) == pytest.approx(rate)
    assert grid_rate(0.0949) == pytest.approx(0.1) and grid_rate(2.0) in (1.0, 3.0)


@pytest.mark.parametrize(
    ("layers", "width", "noise", "rate"),
    [(30, 576, 1.0, 0.001), (30, 576, 2.5, 0.003), (30, 576, 1e9, 0.003), (4, 128, 6.2, 0.03), (4, 128, 1e9, 0.03)],
)
def test_the_rule_is_higher_where_little_of_a_step_is_signal(
    layers: int, width: int, noise: float, rate: float
) -> None:
    assert rule_rate(adapter_of(layers, width), noise) == pytest.approx(rate)


@dataclass
class Toy:
    """A model of one vector: the loss is its squared distance from where ``best`` is in every entry."""

    best: float
    records: int = 200
    dimension: int = 50

    def __post_init__(self) -> None:
        self.point = np.zeros(self.dimension, np.float32)
        self.adapter = adapter_of(4, 128, self.dimension)
        self.adapter.vector = lambda: self.point.copy()
        self.adapter.load = self.load
        self.losses = self
        self.scorer = SimpleNamespace(adapter=self.adapter)

    def load(self, vector: npt.NDArray[np.float32]) -> None:
        self.point = vector.copy()

    def clipped_sum(self, at: Any, indices: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.float64]:
        gap = np.asarray(at, np.float64) - self.best
        return len(indices) * gap / max(1.0, float(np.linalg.norm(gap)))

    def targets(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.stack([indices % 2 == 0, indices % 2 == 1], 1).astype(float)

    def scores(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Order the records the better the nearer the point is."""
        share = math.exp(-10 * float(((self.point - self.best) ** 2).mean()) / max(self.best**2, 1e-9))
        known = np.random.default_rng(0).random((len(indices), 2)) < share
        return np.where(known, Toy.targets(self, indices), np.random.default_rng(1).random((len(indices), 2)))


def planned(*more: str) -> tuple[Config, RunPlan]:
    config = load_config(None, ["privacy.unit=none", *more])
    return config, plan_with(config, 8000, 50)


def test_a_pilot_finds_the_rate_that_reaches_the_optimum_and_repeats_itself() -> None:
    config, plan = planned()
    toy = Toy(best=2.0)  # twenty steps of the rule's 0.03 go a third of the way
    rate = choose_rate(config, plan, toy, 1.0, SilentReporter())  # type: ignore[arg-type]
    assert rate.server_lr == pytest.approx(0.1) and "pilot" in rate.sentence
    assert [tried for tried, _ in rate.curve] == pytest.approx([0, 0.01, 0.03, 0.1, 0.3])
    assert not toy.point.any(), "the adapter is where it was"
    again = choose_rate(config, plan, toy, 1.0, SilentReporter())  # type: ignore[arg-type]
    assert again == rate and "0.1" in rate.sentence


class RareToy(Toy):
    """One more label, of a single record, which a higher rate always ranks lower."""

    def targets(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        rare = np.zeros((len(indices), 1))
        rare[0] = 1.0
        return np.hstack([super().targets(indices), rare])

    def scores(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        rare = np.full((len(indices), 1), 0.5)
        rare[0] = 0.5 - float(np.abs(self.point).mean())
        return np.hstack([super().scores(indices), rare])


def test_a_label_of_one_held_out_record_does_not_decide_between_rates() -> None:
    config, plan = planned()
    found = [choose_rate(config, plan, toy(best=2.0), 1.0, SilentReporter()) for toy in (Toy, RareToy)]  # type: ignore[arg-type]
    assert found[0] == found[1]


def test_records_on_which_nothing_is_learnt_leave_the_rule_alone() -> None:
    config, plan = planned()
    toy = Toy(best=0.0)
    rate = choose_rate(config, plan, toy, 1.0, SilentReporter())  # type: ignore[arg-type]
    assert rate.server_lr == pytest.approx(0.03)


def test_a_rate_replaces_the_rule_where_it_clearly_beats_the_untuned_model_too() -> None:
    margin = 0.3 / math.sqrt(50)
    for barely in ({1e-3: 0.29, 1e-4: 0.403}, {1e-3: 0.42, 1e-4: 0.45}):
        assert _best({**barely}, 1e-3, 0.394, margin) == 1e-3
    assert _best({1e-3: 0.29, 1e-4: 0.44}, 1e-3, 0.394, margin) == 1e-4
    # Two that are level: small batches of a pilot favour small steps, so the one nearest to the rule's.
    assert _best({0.1: 0.473, 0.03: 0.521, 0.01: 0.567, 0.003: 0.57}, 0.03, 0.435, 0.3 / 16) == 0.01
    assert _best({1e-3: None, 1e-4: 0.39}, 1e-3, 0.394, margin) == 1e-4
    assert _best({1e-3: None, 1e-4: None}, 1e-3, 0.394, margin) == 1e-4


def test_where_there_is_no_pilot_the_rule_stands_and_says_so() -> None:
    toy = Toy(best=2.0, records=6)
    for config, plan in (planned(), planned("federation.local_steps=3"), planned("federation.rounds=1")):
        rate = choose_rate(config, plan, toy, 1.0, SilentReporter())  # type: ignore[arg-type]
        assert rate.server_lr == pytest.approx(0.03) and rate.curve == ()
        assert "rule for the model's size; NO PILOT" in rate.sentence
    config, plan = planned("federation.server_lr=0.2")
    assert choose_rate(config, plan, toy, 1.0, SilentReporter()).server_lr == 0.2  # type: ignore[arg-type]


def test_a_pilot_costs_a_small_share_of_the_run() -> None:
    _, plan = planned()
    rounds, batch = pilot_size(plan, 512)
    assert 3 * rounds * batch <= 0.08 * plan.privacy.rounds * plan.privacy.expected_batch


def test_a_head_alone_takes_less_momentum_and_any_other_adapter_what_is_set(small: Callable[..., Config]) -> None:
    config = small("federation.server_lr=0.03")
    adapter = label_scorer(config, load_corpora(config, SilentReporter()).private.space).adapter
    assert adapter.head is not None
    gradient = np.ones(adapter.dimension)

    def second_step(*more: str) -> float:
        """Return how far a step goes on the head after a round, relative to the one before, if no gradient follows."""
        optimizer, start = make_optimizer(small("federation.server_lr=0.03", *more), adapter), adapter.vector()
        first = optimizer.step(start, gradient)
        second = optimizer.step(first, 0 * gradient)
        head = adapter.head_entries()
        return float(np.abs(second - first)[head].max() / np.abs(first - start)[head].max())

    kept = math.sqrt((1 - 0.99**2) / (0.01 * 0.99))  # by the second moment
    assert second_step() == pytest.approx(0.8 * 0.2 / (1 - 0.8**2) * kept, rel=1e-3)
    adapter.head.weigh(0.0)
    assert second_step() == pytest.approx(0.5 * 0.5 / (1 - 0.5**2) * kept, rel=1e-3)
    assert second_step("federation.betas=[0.1,0.99]") == pytest.approx(0.1 * 0.9 / (1 - 0.1**2) * kept, rel=1e-3)


def test_small_entries_take_smaller_steps_where_rounds_draw_all_records(small: Callable[..., Config]) -> None:
    config = small("privacy.unit=none")
    adapter = label_scorer(config, load_corpora(config, SilentReporter()).private.space).adapter
    assert adapter.head is not None
    adapter.head.weigh(0.0)
    head, gradient = adapter.head_entries(), np.full(adapter.dimension, 1e-3 * adapter.head.gain)

    def step(*more: str) -> float:
        words = ("federation.server_lr=0.03", "privacy.unit=none", *more)
        return float(np.abs(make_optimizer(small(*words), adapter).step(0 * gradient, gradient))[head].max())

    part, whole = step("privacy.sample_rate=0.9"), step("privacy.sample_rate=1")
    assert part == pytest.approx(0.06 * 1e-3 / (1e-3 + 1e-3), rel=1e-3)  # g / (|g| + eps)
    assert whole == pytest.approx(0.06 * 1e-3 / (1e-3 + 4e-3), rel=1e-3)


def test_a_round_of_a_pilot_is_as_noisy_as_a_round_of_the_run() -> None:
    plan = plan_with(load_config(None, ["privacy.clipping_norm=0.5"]), 1000, 2000)
    round_batch, noise, rng = plan.expected_batch(7), plan.noise_norm(7), np.random.default_rng(0)
    mean = 0.2  # norm of the mean of gradients that all have norm 0.5
    directions = rng.normal(size=(600, 2000))
    directions[:, 0] = 0
    gradients = directions * (math.sqrt(0.25 - mean**2) / np.linalg.norm(directions, axis=1))[:, None]
    gradients[:, 0] = mean

    def mean_square(batch: int, added: float) -> float:
        """Return the mean squared distance of noisy means from the mean gradient."""
        drawn = gradients[rng.integers(600, size=(60, batch))].mean(1)
        drawn[:, 0] -= mean
        return float(((drawn + added * rng.normal(size=(60, 2000)) / math.sqrt(2000)) ** 2).sum(1).mean())

    small_round = mean_square(64, pilot_noise(plan, 7, mean, 64))
    assert small_round == pytest.approx(mean_square(round(round_batch), noise), rel=0.03)
    assert mean_square(64, noise) > 1.05 * small_round
    # A batch so small that its sampling is already noisier gets none, and one as large as a round's all of it.
    assert pilot_noise(plan, 7, mean, 1) == 0
    assert pilot_noise(plan, 7, mean, round(round_batch)) == pytest.approx(noise, rel=1e-3)
    clipped = plan_with(load_config(None, ["privacy.normalise=false"]), 8000, 2000)
    assert pilot_noise(clipped, 7, mean, 16) == clipped.noise_norm(7)
    assert pilot_noise(planned()[1], 7, mean, 16) == 0


@pytest.fixture(scope="module")
def small(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    root = tmp_path_factory.getbasetemp()

    def make(*more: str) -> Config:
        words = [f"model.base={base}", f"data.cache_dir={root / 'corpora'}", "model.quantization=none"]
        words += ["data.records=160", "federation.rounds=2", "privacy.delta=0.001", "adapter.rank=2"]
        chosen = {word.split("=")[0]: word for word in [*words, "adapter.last_layers=1", *more]}
        return load_config(None, list(chosen.values()))

    return make


def prepared(
    config: Config, confirm: Callable[[str], bool] | None = None, *, alone: bool = False
) -> tuple[dict[str, Any], Any]:
    corpora = load_corpora(config, SilentReporter())
    scorer = label_scorer(config, corpora.private.space)
    if alone:
        assert scorer.adapter.head is not None
        scorer.adapter.head.weigh(0.0)
    config, _ = resolve_sample_rate(config, corpora, scorer.adapter)
    plan = plan_run(request_of(config, corpora, scorer.adapter.dimension))
    return prepare(config, plan, scorer, corpora, None, SilentReporter(), confirm), scorer.adapter


def test_a_run_of_noise_asks_and_a_normal_one_does_not(small: Callable[..., Config]) -> None:
    asked: list[str] = []

    def no(text: str) -> bool:
        asked.append(text)
        return False

    prepared(small(), no)
    assert asked == []
    noise = small("privacy.epsilon=0.05", "adapter.rank=64", "adapter.targets=[q,v,gate,up]")
    with pytest.raises(UnconfirmedError, match="--yes"):
        prepared(noise, no)
    assert len(asked) == 1
    made, _ = prepared(noise, confirmation(True))
    assert made["forecast"]["nearly_all_noise"]


def test_the_command_refuses_a_run_of_noise_with_its_own_code(small: Callable[..., Config], tmp_path: Path) -> None:
    config = small("privacy.epsilon=0.05")
    words = [f"model.base={config.model.base}", f"data.cache_dir={config.data.cache_dir}", f"run.dir={tmp_path}"]
    words += ["model.quantization=none", "data.records=160", "privacy.delta=0.001", "privacy.epsilon=0.05"]
    given = [part for word in words for part in ("--set", word)]
    refused = CliRunner().invoke(app, ["train", "--quiet", *given])
    assert refused.exit_code == UnconfirmedError.exit_code == 26, refused.output
    assert "Nothing was spent" in refused.stderr and not list(tmp_path.iterdir())
    shown = CliRunner().invoke(app, ["plan", "--quiet", "--json", *given])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["forecast"]["nearly_all_noise"] and found["forecast"]["needs"] and not list(tmp_path.iterdir())


def test_a_warm_start_moves_the_adapter_and_costs_nothing(small: Callable[..., Config]) -> None:
    cold, adapter = prepared(small("adapter.warm_start=none"))
    assert cold["warm_start"] == "" and not adapter.vector()[adapter.trainable_entries(1)].any()
    warm, adapter = prepared(small("adapter.warm_start=public"))
    assert adapter.vector()[adapter.trainable_entries(1)].any() and "without noise" in warm["warm_start"]
    # By default too, as this base is not the embedded one; the rate of the run does not matter.
    _, again = prepared(small("federation.server_lr=5"))
    np.testing.assert_array_equal(again.vector(), adapter.vector())
    local, _ = prepared(small("privacy.unit=none", "federation.local_steps=2", "federation.aggregator=fedprox"))
    assert local["warm_start"] == ""


def test_a_head_that_is_trained_alone_begins_on_the_way_to_its_public_fit(small: Callable[..., Config]) -> None:
    made, adapter = prepared(small(), alone=True)
    trained = adapter.trainable_entries(1)
    assert adapter.vector()[trained].any() and not adapter.untuned()[~adapter.head_entries() & trained].any()
    assert "40% of" in made["warm_start"] and made["forecast"]["update"] > 0
    measured_cold, cold = prepared(small("adapter.warm_start=none"), alone=True)
    assert not cold.vector()[trained].any() and measured_cold["warm_start"] == ""
    # Forecast and pilot come before, so that they do not see an adapter that knows their records.
    assert made["forecast"] == measured_cold["forecast"] and made["server_lr"] == measured_cold["server_lr"]
    made, adapter = prepared(small("privacy.unit=none"), alone=True)
    assert adapter.vector()[adapter.trainable_entries(1)].any() and "40% of" in made["warm_start"]


def test_what_was_measured_is_kept_and_completed_at_the_end(small: Callable[..., Config], tmp_path: Path) -> None:
    config = small()
    made, adapter = prepared(config)
    folder: Any = SimpleNamespace(path=tmp_path)
    write_record(folder, made)
    assert read_record(folder) == json.loads(json.dumps(made)) and made["server_lr"]["server_lr"] == pytest.approx(
        0.03
    )
    assert close_record(folder, config, made, perplexity(adapter)) == []  # a random base has no language
    assert read_record(folder)["language"]["after"] > 0
    assert len(_preparation(tmp_path)) == 3 and _preparation(tmp_path / "elsewhere") == []
    (tmp_path / "preparation.json").write_text("{}")
    for read in (lambda: read_record(folder), lambda: _preparation(tmp_path)):
        with pytest.raises(RunError, match="restore it"):
            read()


def test_damaged_language_is_said_loudly() -> None:
    config = load_config(None, ["model.base=some/model"])
    assert language_sentence(config, 15.0, 16.0).startswith("perplexity")
    assert language_sentence(config, 14.85, 16505.0).startswith("WARNING: training damaged")
    assert language_sentence(config, 14.85, math.inf).startswith("WARNING")
    assert language_sentence(config, 5000.0, 9000.0) == language_sentence(load_config(None, ()), 15.0, 90.0) == ""
