"""The words of ``carefl-secure budget``."""

from __future__ import annotations

import json

import pytest
from click.testing import Result
from typer.testing import CliRunner

from carefl_secure.cli import app

FOUR = {"--sample-rate": "0.01", "--noise-multiplier": "1", "--rounds": "1000", "--epsilon": "2.5"}


def budget(*words: str, without: str = "", mechanism: str = "skellam") -> Result:
    known = [word for name, value in FOUR.items() if name != without for word in (name, value)]
    return CliRunner().invoke(app, ["budget", "--delta", "1e-5", "--mechanism", mechanism, *known, *words])


@pytest.mark.parametrize("name", list(FOUR))
def test_each_can_be_left_out(name: str) -> None:
    result = budget("--json", without=name)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["solved_for"] == name.removeprefix("--").replace("-", "_")
    assert found["epsilon"] <= 2.5
    assert found["delta"] == 1e-5
    assert found["adjacency"] == "add-or-remove-one"
    assert (found["unit"], found["mechanism"]) == ("record", "skellam")
    assert found["accountant"].startswith("PLD")
    assert found["dimension"] == 40960
    assert found["verdict"] == "reasonable, not strong"
    assert found["opacus_prv_epsilon"] is None
    for key in ("noise_multiplier", "rounds", "sample_rate"):
        assert found[key] > 0


def test_the_gaussian_is_the_default_and_can_be_cross_checked() -> None:
    words = ["--crosscheck", "--sample-rate", "0.01", "--noise-multiplier", "1", "--rounds", "1000"]
    result = CliRunner().invoke(app, ["budget", "--delta", "1e-5", *words])
    assert result.exit_code == 0
    out = result.stdout
    assert "epsilon 1.829 at delta 1e-05: reasonable, not strong" in out
    assert "Opacus PRV 1.838" in out
    for text in ("PLD", "Poisson", "add or remove one", "1000 sums", "image-person record"):
        assert text in out
    assert "^ 1000 rounds" in out
    assert "\x1b" not in out
    rows = [line.split() for line in out.splitlines() if "└" not in line]
    table = {int(row[0]): float(row[1]) for row in rows if len(row) == 2 and row[0].isdecimal()}
    assert table[1000] == 1.829
    assert list(table.values()) == sorted(table.values())
    assert max(table) == 2000


def test_the_cross_check_is_made_on_request_only() -> None:
    result = budget(without="--epsilon", mechanism="gaussian")
    assert result.exit_code == 0
    assert "cross-check" not in result.stdout
    result = budget("--crosscheck", without="--epsilon", mechanism="skellam")
    assert "cross-check: none, as Opacus PRV has no figure" in result.stdout


def test_the_curve_rises_and_fits_a_terminal() -> None:
    out = budget(without="--epsilon").stdout
    curve = [line for line in out.splitlines() if "│" in line]
    assert len(curve) == 8
    widths = [len(line.split("│")[1].replace(" ", "")) for line in curve]
    assert widths == sorted(widths)  # the higher, the fewer rounds reach it
    assert widths[-1] == 48
    assert max(map(len, curve)) <= 80


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--delta", "1e-5"], 2, "leave out exactly one"),
        (["--delta", "1e-5", "--epsilon", "8", "--rounds", "3"], 2, "leave out exactly one"),
        ([], 2, "--delta"),
        (["--delta", "0.3", "--epsilon", "8", "--rounds", "3", "--sample-rate", "1"], 2, "delta"),
        (["--delta", "1e-5", "--mechanism", "laplace"], 2, "laplace"),
    ],
)
def test_wrong_words(words: list[str], code: int, text: str) -> None:
    result = CliRunner().invoke(app, ["budget", *words])
    assert result.exit_code == code
    assert text in result.stderr
    assert result.stdout == ""


def test_four_that_contradict_each_other() -> None:
    result = budget("--epsilon", "1")
    assert result.exit_code == 21
    assert "cost epsilon 1.84 " in result.stderr


def test_a_target_out_of_reach() -> None:
    words = ["--sample-rate", "1", "--noise-multiplier", "0.5", "--epsilon", "1"]
    result = CliRunner().invoke(app, ["budget", "--delta", "1e-5", *words])
    assert result.exit_code == 21
    assert "one round alone costs" in result.stderr


def test_the_client_unit() -> None:
    words = ["--unit", "client", "--mechanism", "skellam", "--noise-multiplier", "8"]
    result = CliRunner().invoke(app, ["budget", "--delta", "1e-5", *words, "--rounds", "10"])
    assert result.exit_code == 0
    assert "unit: one client" in result.stdout


def test_a_person_with_k_records() -> None:
    words = ["--unit", "person", "--records-per-person", "4", "--sample-rate", "0.01"]
    words += ["--noise-multiplier", "1", "--rounds", "30", "--delta", "1e-5"]
    result = CliRunner().invoke(app, ["budget", *words, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["unit"], found["records_per_person"]) == ("person", 4)
    assert found["opacus_prv_epsilon"] is None
    shown = CliRunner().invoke(app, ["budget", *words]).stdout
    assert "at most 4 records" in shown
    for text in (
        "maximum",
        "binomial probability",
        "the sum of epsilon and delta",
        "colluders",
        "several runs on the same records",
    ):
        assert text in shown


def test_a_dimension_without_skellam_noise() -> None:
    words = ["--sample-rate", "0.1", "--noise-multiplier", "1", "--rounds", "3", "--dimension", "9"]
    result = CliRunner().invoke(app, ["budget", "--delta", "1e-5", *words])
    assert result.exit_code == 2
    assert "leave it out" in result.stderr


def test_banded_noise_and_other_deltas() -> None:
    words = ["--sample-rate", "0.2", "--rounds", "20", "--epsilon", "8", "--bands", "5", "--mechanism", "skellam"]
    result = CliRunner().invoke(app, ["budget", "--delta", "1e-5", *words])
    assert result.exit_code == 0, result.output
    assert "noise multiplier  1.20" in result.stdout
    assert "one in 5, with probability 1" in result.stdout
    assert "at delta 1e-06" in result.stdout
    assert "no figure is proved for banded noise" in result.stdout
    found = json.loads(CliRunner().invoke(app, ["budget", "--delta", "1e-5", *words, "--json"]).stdout)
    assert (found["bands"], [delta for delta, _ in found["by_delta"]]) == (5, [1e-4, 1e-6, 1e-7])
