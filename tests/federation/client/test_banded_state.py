"""What a client keeps under banded noise: groups, its own noise, and what is lost or told wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from carefl_secure.errors import LedgerError, PrivacyError, ProtocolError
from carefl_secure.federation.client.banded_state import BandedState
from carefl_secure.federation.client.round_state import RoundBudget
from carefl_secure.noise import KeyStream, SkellamSampler, SystemKeySource
from carefl_secure.noise.skellam import correlate
from carefl_secure.privacy import Ledger, epsilon
from tests.support.federation import Bench, known_plan, make_bench  # noqa: F401

CORRELATION = (4, 3, 2)
PLAN = known_plan(6, 60, rounds=8, sample_rate=0.25, correlation=CORRELATION)
SIZE = PLAN.encoding.padded


def state(path: Path | None = None, signs: bool = True) -> BandedState:
    made = BandedState(PLAN, SystemKeySource(), path and path / "banded-x", signs)
    made.open(0)
    return made


def fresh(number: int) -> NDArray[np.int64]:
    return np.random.default_rng(number).integers(-(10**6), 10**6, SIZE)


def test_groups_are_kept_and_are_the_rounds_remainder(tmp_path: Path) -> None:
    first = state(tmp_path)
    groups = [first.members(3000, number) for number in range(1, 7)]
    assert np.array_equal(np.sort(np.concatenate(groups[:3])), np.arange(3000))
    assert all(abs(len(group) - 1000) < 150 for group in groups)
    assert all(np.array_equal(groups[i], groups[i + 3]) for i in range(3))
    again = BandedState(PLAN, SystemKeySource(), tmp_path / "banded-x", True)
    again.open(5)
    assert np.array_equal(again.members(3000, 2), groups[1])
    assert not np.array_equal(state().members(3000, 2), groups[1])  # another client's are its own
    with pytest.raises(PrivacyError, match="would change groups"):
        again.members(2999, 2)
    assert (tmp_path / "banded-x-0.groups").stat().st_mode & 0o777 == 0o600


def test_lost_groups_end_the_run() -> None:
    with pytest.raises(ProtocolError, match="are lost"):
        BandedState(PLAN, SystemKeySource(), None, True).open(1)


@pytest.mark.parametrize("afresh", [False, True])
def test_what_counts_is_taken_back_and_nothing_else(tmp_path: Path, afresh: bool) -> None:
    """Round 2 was not in the sum, 4 was missed; lags count what is kept, and end with the band."""
    held, kept = state(tmp_path), dict[int, NDArray[np.int64]]()
    for number, past in ((1, []), (2, [1]), (3, [1]), (5, [3]), (6, [5]), (7, [6, 5]), (8, [7, 6])):
        if afresh:
            held = BandedState(PLAN, SystemKeySource(), tmp_path / "banded-x", True)
        drawn = held.noise(number, fresh(number))
        taken = {lag: kept[earlier] for lag, earlier in enumerate(past, 1)}
        assert np.array_equal(drawn, correlate(fresh(number), taken, CORRELATION)), number
        kept[number] = drawn
        if number != 2:
            held.include()
    assert [file.name for file in tmp_path.iterdir()] == ["banded-x-0.groups"]  # all noise is erased after the last


def test_a_committee_says_nothing_so_all_counts(tmp_path: Path) -> None:
    held = state(tmp_path, signs=False)
    one = held.noise(1, fresh(1))
    two = BandedState(PLAN, SystemKeySource(), tmp_path / "banded-x", False).noise(2, fresh(2))
    assert np.array_equal(two, correlate(fresh(2), {1: one}, CORRELATION))


def test_the_disk_holds_the_noise_of_the_band_only(tmp_path: Path) -> None:
    """What a thief of the disk finds after each round: noise of two rounds, a key and a number; then no noise."""
    held, drawn = state(tmp_path), dict[int, NDArray[np.int64]]()
    held.members(3000, 1)
    for number in range(1, 9):
        drawn[number] = held.noise(number, fresh(number))
        held.include()
        files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in tmp_path.iterdir())
        assert len(files.pop("banded-x-0.groups")) == 40
        kept = [each for each in (number - 1, number) if each >= 1] if number < 8 else []
        assert files == {f"banded-x-{each}.noise": drawn[each].astype("<i8").tobytes() for each in kept}


def test_a_thief_of_the_disk_lacks_the_noise_of_other_clients(tmp_path: Path) -> None:
    """Without one client's noise, the sum of the fewest survivors has what the account counts: it is a colluder."""
    plan = known_plan(6, 2000, rounds=4, sample_rate=0.25, correlation=CORRELATION)
    clients = [BandedState(plan, SystemKeySource(), tmp_path / f"banded-{i}", False) for i in range(6)]
    sampler, size = SkellamSampler(plan.share_variance), plan.encoding.padded
    total = np.zeros(size, np.int64)
    for client in clients[: plan.privacy.min_survivors]:
        client.open(0)
        total += client.noise(1, sampler.sample(KeyStream(SystemKeySource().key("noise")), size))
    stolen = np.frombuffer((tmp_path / "banded-0-1.noise").read_bytes(), "<i8")
    assert plan.privacy.max_colluders == 1
    assert np.var(total - stolen) == pytest.approx(plan.privacy.noise_clients * plan.share_variance, rel=0.15)


def test_damaged_noise_is_left_out(tmp_path: Path) -> None:
    held = state(tmp_path)
    held.noise(1, fresh(1))
    held.include()
    (tmp_path / "banded-x-1.noise").write_bytes(b"torn")
    again = BandedState(PLAN, SystemKeySource(), tmp_path / "banded-x", True)
    assert np.array_equal(again.noise(2, fresh(2)), fresh(2))


def budget(tmp_path: Path, bench: Bench) -> tuple[RoundBudget, Ledger]:
    ledger = Ledger(tmp_path / "own.jsonl")
    return RoundBudget(ledger, bench.plan, bench.clients.cohort), ledger


def test_a_cycle_of_rounds_is_one_spend(tmp_path: Path, make_bench) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    bench = make_bench(rounds=8, sample_rate=0.25, correlation=CORRELATION)
    book, ledger = budget(tmp_path, bench)
    assert book.after(8) <= 8.0
    for number in range(1, 9):
        left = book.further(9 - number)
        assert left is None or left.count + len(ledger.events()) == 3
        book.charge(number)
        assert len(ledger.events()) == -(-number // 3)
        assert book.charged() == number
        if number < 8:
            with pytest.raises(LedgerError, match="does not come after"):
                book.charge(number)
    assert book.epsilon() == epsilon([bench.plan.event.times(3)], 1e-5) <= 8.0


def test_skipped_numbers_are_paid_as_what_they_are(tmp_path: Path, make_bench) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    """A server that only asks for one group's rounds makes each of them cost."""
    book, ledger = budget(tmp_path, make_bench(rounds=8, sample_rate=0.25, correlation=CORRELATION))
    for spends, number in ((1, 1), (2, 4), (2, 5), (3, 7), (3, 8)):
        book.charge(number)
        assert len(ledger.events()) == spends, number


@pytest.mark.parametrize("mode", ["pairwise", "committee", "encrypted"])
def test_a_run_under_every_protocol(make_bench, mode: str) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    """The opened noise is the planned fresh noise once what rounds took back is put in again."""
    if mode == "encrypted":
        pytest.importorskip("tenseal")
    bench: Bench = make_bench(
        records=0, rounds=4, sample_rate=0.25, correlation=CORRELATION, aggregation=mode, dimension=200
    )
    bench.start(rounds=4)
    sums = np.diff(np.stack([np.zeros(200), *bench.adapters]).astype(np.float64), axis=0)  # minus the mean gradients
    whole = sums.copy()
    for lag, m in enumerate(CORRELATION[1:], 1):
        whole[lag:] += m / CORRELATION[0] * sums[:-lag]
    planned = np.sqrt(bench.plan.noise_variance(6) / bench.plan.encoding.noise_gain)
    assert np.std(whole) == pytest.approx(planned, rel=0.12)
    assert bench.client_spends() == [2] * 6
    assert bench.releases() == 4
