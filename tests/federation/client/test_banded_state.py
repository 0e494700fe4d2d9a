"""What a client keeps under banded noise: groups, its own noise, and what is lost or told wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from carefl_secure.errors import LedgerError, PrivacyError, ProtocolError
from carefl_secure.federation.client.banded_state import BandedState
from carefl_secure.federation.client.round_state import RoundBudget
from carefl_secure.federation.client.sealed_files import SealedFiles
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.noise import KeyStream, SkellamSampler, SystemKeySource
from carefl_secure.noise.skellam import correlate
from carefl_secure.privacy import Ledger, epsilon
from carefl_secure.secagg.primitives.crypto import pack, raw_identity
from tests.support.federation import Bench, known_plan, make_bench  # noqa: F401

CORRELATION = (4, 3, 2)
PLAN = known_plan(6, 60, rounds=8, sample_rate=0.25, correlation=CORRELATION)
SIZE = PLAN.encoding.padded


def files(path: Path, name: str = "banded-x", secret: bytes = bytes(32)) -> SealedFiles:
    return SealedFiles(path / name, secret, (b"run", PLAN.hash(), bytes(8)), SystemKeySource())


def again(path: Path, signs: bool = True, secret: bytes = bytes(32)) -> BandedState:
    return BandedState(PLAN, SystemKeySource(), files(path, secret=secret), signs)


def state(path: Path | None = None, signs: bool = True) -> BandedState:
    made = BandedState(PLAN, SystemKeySource(), None, signs) if path is None else again(path, signs)
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
    later = again(tmp_path)
    later.open(5)
    assert np.array_equal(later.members(3000, 2), groups[1])
    assert not np.array_equal(state().members(3000, 2), groups[1])  # another client's are its own
    with pytest.raises(PrivacyError, match="would change groups"):
        later.members(2999, 2)
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
            held = again(tmp_path)
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
    two = again(tmp_path, signs=False).noise(2, fresh(2))
    assert np.array_equal(two, correlate(fresh(2), {1: one}, CORRELATION))


def test_the_disk_holds_the_noise_of_the_band_only(tmp_path: Path) -> None:
    """What a thief of the disk finds after each round, with the key: noise of two rounds, then none."""
    held, drawn = state(tmp_path), dict[int, NDArray[np.int64]]()
    held.members(3000, 1)
    for number in range(1, 9):
        drawn[number] = held.noise(number, fresh(number))
        held.include()
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in tmp_path.iterdir())
        sealed = files(tmp_path)
        assert len(sealed.read(sealed.find("groups")[0], "groups", 0)) == 40
        kept = [each for each in (number - 1, number) if each >= 1] if number < 8 else []
        found = {each: sealed.read(file, "noise", each) for each, file in sealed.find("noise").items()}
        assert found == {each: drawn[each].astype("<i8").tobytes() for each in kept}
        assert len(list(tmp_path.iterdir())) == 1 + len(kept)
        assert not any(one[:64] in file.read_bytes() for one in found.values() for file in tmp_path.iterdir())


def test_a_thief_of_the_disk_lacks_the_noise_of_other_clients(tmp_path: Path) -> None:
    """Without one client's noise, the sum of the fewest survivors has what the account counts: it is a colluder."""
    plan = known_plan(6, 2000, rounds=4, sample_rate=0.25, correlation=CORRELATION)
    sealed = [files(tmp_path, f"banded-{i}") for i in range(6)]
    clients = [BandedState(plan, SystemKeySource(), each, False) for each in sealed]
    sampler, size = SkellamSampler(plan.share_variance), plan.encoding.padded
    total = np.zeros(size, np.int64)
    for client in clients[: plan.privacy.min_survivors]:
        client.open(0)
        total += client.noise(1, sampler.sample(KeyStream(SystemKeySource().key("noise")), size))
    stolen = np.frombuffer(sealed[0].read(tmp_path / "banded-0-1.noise", "noise", 1), "<i8")
    assert plan.privacy.max_colluders == 1
    assert np.var(total - stolen) == pytest.approx(plan.privacy.noise_clients * plan.share_variance, rel=0.15)


DAMAGE = {
    "flipped": lambda folder: _write(folder, flipped((folder / "banded-x-1.noise").read_bytes())),
    "truncated": lambda folder: _write(folder, (folder / "banded-x-1.noise").read_bytes()[:-1]),
    "torn": lambda folder: _write(folder, b""),
    "not sealed": lambda folder: _write(folder, fresh(1).astype("<i8").tobytes()),
    "of another round": lambda folder: (
        files(folder).write("noise", 7, bytes(8 * SIZE), "other")
        or (folder / "banded-x-7.other").replace(folder / "banded-x-1.noise")
    ),
    "of another client": lambda folder: files(folder, secret=b"other").write("noise", 1, bytes(8 * SIZE)),
}


def _write(folder: Path, content: bytes) -> None:
    (folder / "banded-x-1.noise").write_bytes(content)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_noise_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    """It costs accuracy, no error, and the log says so; a file with a foreign name is passed over."""
    held = state(tmp_path)
    held.noise(1, fresh(1))
    held.include()
    (tmp_path / "banded-x-copy.noise").write_bytes(b"of a user")
    DAMAGE[damage](tmp_path)
    assert np.array_equal(again(tmp_path).noise(2, fresh(2)), fresh(2))
    assert "round 1: kept noise cannot be used" in caplog.text


@pytest.mark.parametrize("secret", [bytes(32), b"of another identity"])
def test_damaged_or_foreign_groups_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, secret: bytes
) -> None:
    """Whoever can write to the folder, and has no key, cannot move a record to another group."""
    groups = tmp_path / "banded-x-0.groups"
    state(tmp_path)
    if secret == bytes(32):
        groups.write_bytes(flipped(groups.read_bytes()))
    later = again(tmp_path, secret=secret)
    assert "kept groups cannot be used" in caplog.text
    with pytest.raises(ProtocolError, match="are lost"):
        later.open(1)


def test_a_client_seals_under_its_identity_and_a_simulation_under_a_file(tmp_path: Path, make_bench) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    bench: Bench = make_bench(rounds=8, sample_rate=0.25, correlation=CORRELATION)
    bench.start(rounds=1)
    for index in range(6):
        folder = bench.folder.client(index)
        key = folder / "storage.key"
        assert key.stat().st_mode & 0o777 == 0o600
        place = (bench.clients.cohort.run, bench.plan.hash(), pack(index))
        (groups,) = folder.glob("banded-*-0.groups")
        path = groups.with_name(groups.name.removesuffix("-0.groups"))
        assert SealedFiles(path, key.read_bytes(), place, SystemKeySource()).read(groups, "groups", 0)
    setup = bench.clients.session(0)._rounds._setup
    session = ClientSession(setup, bench.tasks[0], Ledger(tmp_path / "l.jsonl"), memory=tmp_path)
    assert session._banded is not None
    session._banded.open(0)
    (groups,) = tmp_path.glob("banded-*-0.groups")
    path = groups.with_name(groups.name.removesuffix("-0.groups"))
    place = (bench.clients.cohort.run, bench.plan.hash(), pack(0))
    assert SealedFiles(path, raw_identity(setup.identity), place, SystemKeySource()).read(groups, "groups", 0)


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
