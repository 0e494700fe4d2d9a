"""Ledgers found, read and priced for people."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from carefl_secure.errors import ConfigError, LedgerError
from carefl_secure.privacy import Ledger, SampledGaussian, SampledSkellam, epsilon
from carefl_secure.privacy.ledger.statement import delta_for, event_words, find_ledgers, statement
from tests.support.ledgers import EVENT, PLAN, spend


def test_all_ledgers_of_a_run_in_order(tmp_path: Path) -> None:
    for name in ("ledger.jsonl", *(f"clients/{i}/ledger.jsonl" for i in (10, 2, 0))):
        spend(tmp_path / name)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    names = [path.relative_to(tmp_path).as_posix() for path in find_ledgers(tmp_path)]
    assert names == ["ledger.jsonl", *(f"clients/{i}/ledger.jsonl" for i in (0, 2, 10))]
    assert find_ledgers(tmp_path / "ledger.jsonl") == [tmp_path / "ledger.jsonl"]


def test_a_folder_of_ledgers_that_outlive_runs(tmp_path: Path) -> None:
    for i in (11, 3):
        spend(tmp_path / f"{i}.jsonl")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert [path.name for path in find_ledgers(tmp_path)] == ["3.jsonl", "11.jsonl"]


@pytest.mark.parametrize("name", ["", "absent", "absent.jsonl"])
def test_no_ledger(tmp_path: Path, name: str) -> None:
    with pytest.raises(LedgerError, match="give a ledger file"):
        find_ledgers(tmp_path / name)
    with pytest.raises(LedgerError, match="no ledger at"):
        statement(tmp_path / "absent.jsonl", 1e-5)


def test_delta_is_that_of_the_run(tmp_path: Path) -> None:
    spend(tmp_path / "run" / "clients" / "0" / "ledger.jsonl")
    inside = [tmp_path / "run" / "ledger.jsonl", tmp_path / "run" / "clients" / "0" / "ledger.jsonl"]
    assert delta_for(inside[1]) == 1e-5
    (tmp_path / "run" / "plan.json").write_text(json.dumps({"privacy": PLAN.to_json()}))
    for path in (tmp_path / "run", *inside):
        assert delta_for(path) == PLAN.delta
    (tmp_path / "run" / "plan.json").write_text("{}")
    with pytest.raises(LedgerError, match="--delta"):
        delta_for(tmp_path / "run")


def test_equal_spends_are_drawn_together(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    spend(path, rounds=3)
    spend(path, run="b", rounds=2)
    other = SampledSkellam(0.2, 1e4, 1e2, 1e4, 1, 1e-12)
    spend(path, other, run="b")
    found = statement(path, 1e-5)
    assert [(line.run, line.event.count) for line in found.lines] == [("a", 3), ("b", 2), ("b", 1)]
    assert (found.lines[0].first, found.lines[0].last) == (1, 5)
    assert found.epsilon == pytest.approx(epsilon([EVENT.times(5), other], 1e-5), rel=1e-12)
    assert found.lines[0].epsilon == pytest.approx(epsilon([EVENT.times(3)], 1e-5), rel=1e-12)
    assert found.epsilon == Ledger(path).epsilon(1e-5)
    assert found.head == Ledger(path).head()
    assert "6 spends" in found.remarks()[0]


def test_rounds_without_privacy_have_no_price(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    spend(path)
    Ledger(path).append("note", {"run": "a", "round": 2, "unprotected": True})
    found = statement(path, 1e-5)
    assert found.epsilon == math.inf
    assert found.to_json()["epsilon"] is None
    assert "WITHOUT PRIVACY" in found.remarks()[0]


def test_a_recovered_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    spend(path, rounds=2)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(LedgerError):
        statement(path, 1e-5)
    Ledger(path).recover()
    assert any("cut off 1 times" in text for text in statement(path, 1e-5).remarks())


def test_delta_is_checked(tmp_path: Path) -> None:
    spend(tmp_path / "ledger.jsonl")
    with pytest.raises(ConfigError, match="delta"):
        statement(tmp_path / "ledger.jsonl", 0.5)


def test_words() -> None:
    assert event_words(EVENT) == "Skellam, noise multiplier 1, sample rate 0.1"
    assert event_words(SampledGaussian(0.5, 2.0)) == "Gaussian, noise multiplier 2, sample rate 0.5"
