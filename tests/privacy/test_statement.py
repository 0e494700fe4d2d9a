"""The promise says what holds, against whom, and what does not."""

from __future__ import annotations

import math

import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.federation.plan.cohort import AggregationConfig
from carefl_secure.privacy import verdict
from carefl_secure.privacy.statement import aggregation_text, promise_text


def _text(unit: str = "record", trust: str = "secagg", epsilon: float = 7.5, colluders: int = 2) -> str:
    return promise_text(unit=unit, trust=trust, epsilon=epsilon, delta=1e-5, colluders=colluders)


@pytest.mark.parametrize(
    ("epsilon", "word"),
    [
        (0.0, "strong"),
        (1.0, "strong"),
        (1.0001, "reasonable, not strong"),
        (10.0, "reasonable, not strong"),
        (10.0001, "weak"),
        (math.inf, "weak"),
    ],
)
def test_verdicts(epsilon: float, word: str) -> None:
    assert verdict(epsilon) == word


@pytest.mark.parametrize("epsilon", [-0.1, math.nan])
def test_impossible_epsilons_are_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError):
        verdict(epsilon)
    for unit in ("record", "none"):
        with pytest.raises(ConfigError):
            _text(unit=unit, epsilon=epsilon)


def test_a_record_promise_names_all_it_rests_on() -> None:
    text = _text()
    for part in (
        "one record",
        "adding or removing",
        "add-or-remove-one",
        "epsilon 7.5",
        "delta 1e-05",
        "reasonable, not strong",
        "server together with up to 2 colluding clients",
        "computed from the released sums",
        "Still seen, and not protected: which clients take part and when, how long",
        "the label space, the number of records per client as declared",
        "public split",
        "several records",
    ):
        assert part in text, part


def test_epsilon_is_never_shown_smaller_than_it_is() -> None:
    assert "epsilon 7.124," in _text(epsilon=7.1230001)
    assert "epsilon 0.001," in _text(epsilon=1e-9)
    assert "epsilon 0," in _text(epsilon=0.0)
    assert "epsilon 100," in _text(epsilon=100.0)


def test_who_it_holds_against() -> None:
    assert "as long as no client works with it" in _text(colluders=0)
    assert "up to 1 colluding client," in _text(colluders=1)
    assert "whatever it works with" in _text(trust="none")
    assert "colluding" not in _text(trust="none")


def test_a_client_promise_speaks_of_clients() -> None:
    text = _text(unit="client")
    assert "everything that any one client holds" in text
    assert "several records" not in text
    # its presence is seen, so the neighbour is a client that takes part without data
    assert "zero-out" in text and "add-or-remove-one" not in text
    assert "That a client takes part at all is seen too" in text


@pytest.mark.parametrize("unit", ["record", "person", "client"])
def test_no_promise_speaks_of_all_that_can_be_seen(unit: str) -> None:
    """Time and participation are seen by everybody on the wire."""
    text = _text(unit=unit)
    assert "anything that can be seen" not in text
    assert "how long their answers take" in text


@pytest.mark.parametrize("trust", ["secagg", "none"])
def test_no_protection_is_said_in_plain_words(trust: str) -> None:
    text = _text(unit="none", trust=trust, epsilon=0.0)
    assert text.startswith("Nothing is protected")
    for word in ("strong", "reasonable", "epsilon 0", "colluding"):
        assert word not in text


def test_no_finite_epsilon_is_no_promise() -> None:
    text = _text(epsilon=math.inf)
    assert text.startswith("Nothing is promised")
    assert "Protected is" not in text


def test_every_way_of_summing_says_whom_else_it_needs() -> None:
    assert aggregation_text() == aggregation_text("pairwise") == ""
    assert "needs one member of the committee that does not" in aggregation_text("committee")
    for spare, honest in ((1, 3), (2, 5)):
        needed = AggregationConfig(protocol="committee", members=honest, dropout_tolerance=spare).honest_members
        assert f"at least {honest} members" in aggregation_text("committee", needed)
    assert "even if the holder of the key" in aggregation_text("encrypted")
    with pytest.raises(ConfigError):
        aggregation_text("committee", 0)
