from __future__ import annotations

import pytest

from carefl_secure.config import default_min_survivors, load_config
from carefl_secure.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["privacy.max_colluders=4"], "more than 3"),
        (["data.records=7"], "less than one for each of 8"),
        (["data.records=2000", "privacy.delta=5e-4"], "not below one over the 2000"),
        (["privacy.delta=1e-3"], "not below one over the 8000"),
        (["model.quantization=int8"], "set model.quantization=nf4 or none"),
        (["model.quantization=int8", "privacy.unit=person"], "over the whole batch"),
    ],
)
def test_contradictions_between_sections(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words)
    assert part in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("unit", ["none", "client"])
def test_int8_is_accepted_where_no_record_is_clipped_alone(unit: str) -> None:
    load_config(None, ["model.quantization=int8", f"privacy.unit={unit}"])


@pytest.mark.parametrize("clients", range(3, 60))
def test_colluders_below_the_bound_leave_honest_noise_and_one_survivor_set(clients: int) -> None:
    """The largest number accepted is safe, and one more is refused."""
    floor = default_min_survivors(clients)
    words = [f"federation.clients={clients}", "simulation.dropout=0"]
    accepted = 0
    while True:
        try:
            load_config(None, [*words, f"privacy.max_colluders={accepted + 1}"])
        except ConfigError:
            break
        accepted += 1
    assert floor - accepted >= 1  # an honest share of the noise is left
    assert 2 * floor - accepted > clients  # two survivor sets cannot both be signed
    worse = accepted + 1
    assert floor - worse < 1 or 2 * floor - worse <= clients


def test_delta_is_not_judged_without_privacy() -> None:
    words = ["privacy.unit=none", "data.records=2000", "privacy.delta=1e-3"]
    assert load_config(None, words).privacy.delta == 1e-3


@pytest.mark.parametrize(("clients", "dropout"), [(3, 0.0), (4, 0.1), (5, 0.1), (6, 0.1), (8, 0.1)])
def test_the_default_dropout_leaves_a_round_enough_clients(clients: int, dropout: float) -> None:
    config = load_config(None, [f"federation.clients={clients}"])
    assert config.simulation.dropout == config.dropout == dropout
    with pytest.raises(ConfigError, match=r"simulation\.dropout=0\.9"):
        load_config(None, [f"federation.clients={clients}", "simulation.dropout=0.9"])
