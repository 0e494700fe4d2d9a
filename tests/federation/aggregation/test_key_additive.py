"""Encrypted sums under other schemes: one adapter bit for bit, dropouts, refusals, restarts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from carefl_secure.config import load_config
from carefl_secure.errors import CohortError, ConfigError, RunError
from carefl_secure.federation.aggregation.key_additive import EXPERIMENTAL
from carefl_secure.federation.plan.cohort import Cohort, Encryption, check_encryption
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.train import train
from tests.support.federation import CLIENTS, PEERS, Runs, losing

MakeBench = Callable[..., Any]
OTHERS: tuple[Encryption, ...] = ("additive", "ckks")


def keys(index: int) -> DeterministicKeySource:
    return DeterministicKeySource(b"schemes %d" % index)


_PLANS: dict[tuple[str, ...], Any] = {}


@pytest.fixture
def plan_for(plan_toy: Callable[..., Any]) -> Callable[..., Any]:
    """Plans for CLIENTS clients without colluders; a plan is frozen and takes a while to find."""

    def make(**changes: Any) -> Any:
        key = tuple(f"{name}={value}" for name, value in sorted(changes.items()))
        if key not in _PLANS:
            _PLANS[key] = plan_toy(CLIENTS, 60, max_colluders=0, rounds=2, **changes)
        return _PLANS[key]

    return make


@pytest.mark.parametrize("unit", ["record", "none"])
def test_every_scheme_gives_the_adapter_of_the_peers_bit_for_bit(
    runs: Runs, plan_for: Callable[..., Any], unit: str
) -> None:
    runs.plan = plan_for(**({"unit": "none"} if unit == "none" else {}))
    options = {"key_source": keys, "dropout": 0.2, "seed": 4}
    first = runs.go("pairwise", **options)
    assert np.count_nonzero(first.adapter) == first.adapter.size
    assert EXPERIMENTAL not in runs.reporter.said
    schemes: tuple[Encryption, ...] = ("bfv", *OTHERS) if unit == "record" else ("bfv", "additive")
    for scheme in schemes:
        found = runs.go("encrypted", encryption=scheme, **options)
        np.testing.assert_array_equal(found.adapter, first.adapter)
        assert [row["survivors"] for row in found.rows] == [6, 6]
        assert [row["epsilon"] for row in found.rows] == [row["epsilon"] for row in first.rows]
    assert runs.reporter.said.count(EXPERIMENTAL) == 1
    # other keys, another adapter: the comparison can fail
    options["key_source"] = lambda i: keys(i + 100)
    other = runs.go("encrypted", encryption="additive", **options)
    assert np.abs(other.adapter - first.adapter).max() > 1e-4 or unit == "none"


@pytest.mark.parametrize("scheme", OTHERS)
def test_the_opened_words_are_the_same_even_where_they_wrap(
    make_bench: MakeBench, opened_words: list[NDArray[np.uint16]], scheme: Encryption
) -> None:
    sums = opened_words
    for options in (
        {"aggregation": "pairwise"},
        {"aggregation": "encrypted", "encryption": scheme},
    ):
        bench = make_bench(dimension=2000, delta=1e-4, **options)
        assert bench.plan.encoding.bits == 16
        bench.start()
    assert sums[0].dtype == sums[1].dtype == np.uint16
    np.testing.assert_array_equal(sums[0], sums[1])


@pytest.mark.parametrize("action", PEERS)
def test_a_dropout_at_any_phase_leaves_the_exact_sum_of_the_rest(
    make_bench: MakeBench, action: str
) -> None:
    bench = make_bench(
        CLIENTS,
        max_colluders=0,
        unit="none",
        sample_rate=1.0,
        aggregation="encrypted",
        encryption="additive",
    )
    adapter = bench.start(drop=losing(action, {1, 4}))
    rest = [0, 1, 2, 3, 4, 5, 6] if action in PEERS[3:] else [0, 2, 3, 5, 6]
    whole = np.concatenate([bench.tasks[i].gradients for i in rest])
    np.testing.assert_allclose(adapter, -whole.mean(axis=0), atol=1e-5)
    assert bench.rows[0]["survivors"] == len(rest) and bench.releases() == 1
    assert bench.clients.helpers == []
    assert not any(message.metadata.message_type.startswith("query.h") for _, message in bench.seen)


@pytest.mark.parametrize("scheme", OTHERS)
def test_below_the_floor_nothing_is_opened(make_bench: MakeBench, scheme: Encryption) -> None:
    bench = make_bench(CLIENTS, max_colluders=0, aggregation="encrypted", encryption=scheme)
    with pytest.raises(CohortError):
        bench.start(drop=losing("train.masked", {0, 1, 4}))
    assert bench.rows == [] and bench.releases() == 0
    assert not any(message.metadata.message_type == "query.unmask" for _, message in bench.seen)


@pytest.mark.parametrize("scheme", OTHERS)
def test_a_whole_round_with_a_new_session_for_every_message(
    make_bench: MakeBench, scheme: Encryption
) -> None:
    options = {"aggregation": "encrypted", "encryption": scheme}
    bench = make_bench(**options, key_source=keys)
    plain = make_bench(key_source=keys)
    assert np.count_nonzero(bench.start_afresh(rounds=2)) == 60
    assert bench.releases() == 2 and plain.releases() == 0


def test_ckks_takes_no_sum_without_noise(
    runs: Runs, plan_for: Callable[..., Any], tmp_path: Path
) -> None:
    runs.plan = plan = plan_for(unit="none")
    folder = RunFolder.create(tmp_path, "")
    with pytest.raises(ConfigError, match=r"privacy\.unit is none: a CKKS decryption has an error"):
        runs.go("encrypted", folder, encryption="ckks")
    assert not folder.ledger.exists() and not folder.checkpoint.exists()
    check_encryption(plan, "bfv")
    check_encryption(plan, "additive")
    # and a client that is told to take part refuses by itself
    roster = tuple(bytes([i + 1]) * 32 for i in range(CLIENTS))
    cohort = Cohort(b"run", roster, bytes(32), key_holder=b"h" * 32, encryption="ckks")
    with pytest.raises(ConfigError, match="noised sums only"):
        cohort.encrypted_parameters(plan, 1, bytes(32), bytes(32))


def test_a_run_is_not_resumed_under_another_scheme(
    runs: Runs, plan_for: Callable[..., Any], tmp_path: Path
) -> None:
    runs.plan = plan_for()
    folder = RunFolder.create(tmp_path, "")
    runs.go("encrypted", folder, encryption="additive")
    for scheme in ("bfv", "ckks"):
        with pytest.raises(RunError, match=r"begun with aggregation encrypted \(additive\)"):
            runs.go("encrypted", folder, encryption=scheme, resume=True)


def test_the_scheme_is_in_the_context_of_every_round(plan_for: Callable[..., Any]) -> None:
    plan = plan_for()
    roster = tuple(bytes([i + 1]) * 32 for i in range(CLIENTS))
    seen = {Cohort(b"run", roster, bytes(32)).round_parameters(plan, 1, bytes(32)).context()}
    for scheme in ("bfv", "ckks"):
        cohort = Cohort(b"run", roster, bytes(32), key_holder=b"h" * 32, encryption=scheme)
        seen.add(cohort.encrypted_parameters(plan, 1, bytes(32), bytes(32)).context())
    cohort = Cohort(b"run", roster, bytes(32), encryption="additive")
    assert cohort.aggregation == "encrypted" and cohort.helpers == ()
    seen.add(cohort.additive_parameters(plan, 1, bytes(32)).context())
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encryption": "additive", "key_holder": b"h" * 32}, "no helpers"),
        ({"encryption": "additive", "members": (b"h" * 32,)}, "no helpers"),
        ({"encryption": "ckks"}, "needs a key holder"),
    ],
)
def test_a_cohort_that_does_not_fit_its_scheme(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Cohort(b"run", (b"a" * 32, b"b" * 32, b"c" * 32), bytes(32), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["federation.encryption=additive"], "no effect under federation.aggregation=pairwise"),
        (
            [
                "federation.encryption=ckks",
                "federation.aggregation=encrypted",
                "privacy.unit=none",
            ],
            "noised sums only",
        ),
        (["federation.encryption=paillier", "federation.aggregation=encrypted"], "encryption"),
    ],
)
def test_a_configuration_that_makes_no_sense(changes: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(overrides=changes)


@pytest.mark.slow
def test_train_from_a_configuration(tmp_path: Path) -> None:
    """The whole run on the embedded model, once per way: one adapter, and the label is shown."""
    settings = [
        "data.records=400",
        "federation.clients=4",
        "federation.rounds=1",
        "simulation.dropout=0",
        "evaluation.baselines=false",
        "unsafe_deterministic_noise=true",
        f"data.cache_dir={tmp_path / 'cache'}",
        f"run.dir={tmp_path / 'runs'}",
    ]
    adapters = {}
    for name, more in {
        "pairwise": [],
        "bfv": ["federation.aggregation=encrypted"],
        "additive": ["federation.aggregation=encrypted", "federation.encryption=additive"],
        "ckks": ["federation.aggregation=encrypted", "federation.encryption=ckks"],
    }.items():
        config = load_config(overrides=[*settings, *more, f"run.name={name}"])
        summary = train(config, SilentReporter())
        assert ("EXPERIMENTAL" in summary.promise) == (name == "additive")
        folder = summary.folder
        adapters[name] = b"".join(
            path.read_bytes() for path in sorted(folder.rglob("adapter*.safetensors"))
        )
    assert adapters["pairwise"] and len(set(adapters.values())) == 1
