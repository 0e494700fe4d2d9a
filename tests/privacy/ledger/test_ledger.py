"""The ledger: spends survive crashes, tampering shows, budgets hold."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from carefl_secure.errors import BudgetExceededError, ConfigError, LedgerError, PrivacyError
from carefl_secure.privacy import Event, Ledger, SampledGaussian, SampledSkellam, epsilon
from carefl_secure.privacy.ledger.entry import split_runs

EVENT = SampledSkellam(0.05, 3.8e6, 3749.0, (1.0 * 3749.0) ** 2, 1)
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    book = Ledger(tmp_path / "ledger.jsonl", {"client": "0", "corpus": "faces"})
    book.append("open", {"run": "r1"})
    for number in range(4):
        book.append("spend", {"event": EVENT.to_json(), "round": number})
        book.append("release", {"round": number})
    return book


def test_entries_are_chained_and_dated(ledger: Ledger) -> None:
    entries = ledger.entries()
    assert [entry.index for entry in entries] == list(range(10))
    assert [entry.kind for entry in entries] == ["open", "open"] + ["spend", "release"] * 4
    assert entries[0].payload["identity"] == {"client": "0", "corpus": "faces"}
    for before, after in itertools.pairwise(entries):
        assert after.previous == before.hash
    when = datetime.fromisoformat(entries[-1].time)
    assert when.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - when) < timedelta(hours=1)


def test_append_returns_the_entry_on_disk(ledger: Ledger) -> None:
    entry = ledger.append("note", {"text": "größer", "list": [1, 2.5, None], "deep": {"10": 1}})
    assert Ledger(ledger.path).entries()[-1] == entry
    assert ledger.head() == entry.hash


def test_the_file_is_for_its_owner_alone(ledger: Ledger) -> None:
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600


def test_every_append_is_on_disk_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[bool, int]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        status = os.fstat(descriptor)
        synced.append((stat.S_ISDIR(status.st_mode), status.st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    book = Ledger(tmp_path / "new.jsonl")
    book.append("note", {})
    assert [folder for folder, _ in synced] == [False, True, False], "whole file, folder, entry"
    assert synced[-1] == (False, book.path.stat().st_size)
    synced.clear()
    book.append("note", {})
    assert synced == [(False, book.path.stat().st_size)]


def test_events_and_price_come_from_spends_alone(ledger: Ledger) -> None:
    assert ledger.events() == [EVENT] * 4
    assert ledger.epsilon(1e-5) == epsilon([EVENT.times(4)], 1e-5)


def test_runs_share_one_account(ledger: Ledger) -> None:
    again = Ledger(ledger.path, {"client": "0", "corpus": "faces"})
    again.append("spend", {"event": EVENT.to_json()})
    assert len(ledger.events()) == 5


def test_a_missing_ledger_is_empty_and_reading_makes_no_file(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "none.jsonl")
    assert book.entries() == ()
    assert book.epsilon(1e-5) == 0.0
    assert book.recover() == 0
    assert not book.path.exists()


def test_payload_keys_that_are_numbers_do_not_break_the_chain(ledger: Ledger) -> None:
    ledger.append("note", {"counts": {10: "a", 9: "b"}})
    ledger.verify()


# budgets


def test_guard_refuses_and_writes_nothing(ledger: Ledger) -> None:
    before = ledger.path.read_bytes()
    limit = ledger.epsilon(1e-5)
    with pytest.raises(BudgetExceededError, match="would bring"):
        ledger.guard(EVENT, limit, 1e-5)
    with pytest.raises(BudgetExceededError):
        ledger.spend(EVENT, limit, 1e-5)
    assert ledger.path.read_bytes() == before


def test_guard_lets_pass_what_fits(ledger: Ledger) -> None:
    limit = epsilon([EVENT.times(5)], 1e-5)
    ledger.guard(EVENT, limit, 1e-5)
    entry = ledger.spend(EVENT, limit, 1e-5, {"round": 4})
    assert entry.payload == {"round": 4, "event": EVENT.to_json()}
    with pytest.raises(BudgetExceededError):
        ledger.guard(EVENT, limit, 1e-5)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_limits_that_are_none_are_refused(ledger: Ledger, limit: float) -> None:
    with pytest.raises(ConfigError, match="max_epsilon"):
        ledger.guard(EVENT, limit, 1e-5)


def test_threads_cannot_overspend_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Ledger(tmp_path / "ledger.jsonl")
    limit = epsilon([EVENT.times(5)], 1e-5)

    def dawdle(events: Sequence[Event], delta: float) -> float:
        time.sleep(0.01)  # between the check and the entry the others get their chance
        return epsilon(events, delta)

    monkeypatch.setattr("carefl_secure.privacy.ledger.ledger.epsilon", dawdle)
    refused: list[BudgetExceededError] = []

    def client() -> None:
        mine = Ledger(book.path)
        for _ in range(4):
            try:
                mine.spend(EVENT, limit, 1e-5)
            except BudgetExceededError as error:
                refused.append(error)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(book.events()) == 5
    assert len(refused) == 11


PLANNED = {"run": "r", "planned": 5}


def _spend_all(path: Path) -> None:
    book = Ledger(path)
    for number in itertools.count(1):
        try:
            book.spend(EVENT, 1e6, 1e-5, {**PLANNED, "round": number})
        except BudgetExceededError as error:
            assert "are charged already" in str(error)
            return


def test_processes_cannot_pass_the_count_of_the_plan_together(tmp_path: Path) -> None:
    """The rounds of a plan are counted under the lock of the charge, across its attempts."""
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_spend_all, args=(path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(Ledger(path).events()) == 5


def test_handles_that_were_checked_before_do_not_pass_the_plan(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "ledger.jsonl"), Ledger(tmp_path / "ledger.jsonl")
    for _ in range(4):
        one.spend(EVENT, 1e6, 1e-5, PLANNED)
    for book in (one, other):
        book.guard(EVENT, 1e6, 1e-5, PLANNED)
    other.spend(EVENT, 1e6, 1e-5, PLANNED)
    for ask in (one.spend, one.guard, other.spend):
        with pytest.raises(BudgetExceededError, match="all 5 rounds of the agreed plan"):
            ask(EVENT, 1e6, 1e-5, PLANNED)
    one.spend(EVENT, 1e6, 1e-5, {"run": "another", "planned": 1})
    assert len(one.events()) == 6


def _append_many(path: Path, number: int) -> None:
    book = Ledger(path)
    for _ in range(number):
        book.append("note", {"process": os.getpid()})


def test_two_processes_do_not_interleave(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(path, 40)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    entries = Ledger(path).entries()
    assert len(entries) == 81
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_held_lock_is_an_error_and_not_a_wait_for_ever(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("carefl_secure.privacy.ledger.file._PATIENCE", 0.05)
    with ledger.path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LedgerError, match="another process"):
            ledger.append("note", {})
        with pytest.raises(LedgerError, match="another process"):
            ledger.entries()
    ledger.append("note", {})


# what is refused


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("refund", {}),
        ("note", {"value": float("nan")}),
        ("note", {"value": object()}),
        ("spend", {}),
        ("spend", {"event": "free"}),
    ],
)
def test_bad_entries_are_refused_and_not_written(ledger: Ledger, kind: str, payload: dict[str, object]) -> None:
    before = ledger.path.read_bytes()
    with pytest.raises(ConfigError):
        ledger.append(kind, payload)
    assert ledger.path.read_bytes() == before


def test_a_spend_that_cannot_be_priced_is_refused(ledger: Ledger) -> None:
    before = ledger.path.read_bytes()
    with pytest.raises(PrivacyError):
        ledger.append("spend", {"event": {"kind": "mystery"}})
    assert ledger.path.read_bytes() == before


def test_the_ledger_of_another_client_is_refused(ledger: Ledger) -> None:
    other = Ledger(ledger.path, {"client": "1", "corpus": "faces"})
    with pytest.raises(LedgerError, match="is the ledger of"):
        other.entries()
    with pytest.raises(LedgerError, match="is the ledger of"):
        other.append("note", {})


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be written"):
        Ledger(tmp_path / "missing" / "ledger.jsonl").append("note", {})


def test_a_full_disk_is_an_error(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LedgerError, match="No space"):
        ledger.append("note", {})


def test_a_first_line_that_did_not_fit_makes_no_ledger(tmp_path: Path) -> None:
    """On a disk that is nearly full a write stops short, without an error until the next."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from carefl_secure.privacy import Ledger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n"
        "Ledger(Path(sys.argv[1])).append('note', {})"
    )
    path = tmp_path / "ledger.jsonl"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert "LedgerError" in done.stderr and "File too large" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(LedgerError, match="directory"):
        Ledger(tmp_path / "ledger.jsonl").entries()


def test_a_failed_fsync_is_an_error(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(LedgerError, match="nothing may be released"):
        ledger.spend(EVENT, 100.0, 1e-5)


# tampering


def _lines(ledger: Ledger) -> list[bytes]:
    return ledger.path.read_bytes().splitlines(keepends=True)


def _edit_number(lines: list[bytes]) -> list[bytes]:
    assert b'"variance":14055001.0' in lines[4]
    lines[4] = lines[4].replace(b'"variance":14055001.0', b'"variance":94055001.0')
    return lines


def _edit_time(lines: list[bytes]) -> list[bytes]:
    lines[3] = lines[3].replace(b'"time":"2', b'"time":"3')
    return lines


def _edit_and_rehash_one(lines: list[bytes]) -> list[bytes]:
    """Give the edited entry a hash that fits it; the next entry still names the old one."""
    import hashlib

    entry = json.loads(_edit_number(lines)[4])
    del entry["hash"]
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    entry["hash"] = hashlib.sha256(text.encode()).hexdigest()
    lines[4] = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return lines


def _shadow_key(lines: list[bytes]) -> list[bytes]:
    """Write a key twice: a reader that keeps the first one sees another payload."""
    lines[4] = lines[4].replace(b'"kind":"spend"', b'"kind":"note","kind":"spend"')
    return lines


def _truth_for_one(lines: list[bytes]) -> list[bytes]:
    lines[1] = lines[1].replace(b'"index":1', b'"index":true')
    return lines


TAMPER: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "edited number": _edit_number,
    "edited time": _edit_time,
    "edited and hashed anew": _edit_and_rehash_one,
    "key written twice": _shadow_key,
    "true for 1": _truth_for_one,
    "deleted in the middle": lambda lines: lines[:4] + lines[5:],
    "deleted at the start": lambda lines: lines[1:],
    "reordered": lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
    "repeated": lambda lines: [*lines, lines[-1]],
    "blank line": lambda lines: [*lines[:3], b"\n", *lines[3:]],
    "garbage line": lambda lines: [*lines, b"garbage\n"],
    "a list": lambda lines: [*lines, b"[1,2]\n"],
    "not text": lambda lines: [*lines, b"\xff\xfe\n"],
    "carriage return": lambda lines: [lines[0][:-1] + b"\r\n", *lines[1:]],
}


@pytest.mark.parametrize("name", TAMPER)
def test_tampering_is_refused_everywhere(ledger: Ledger, name: str) -> None:
    before = _lines(ledger)
    after = TAMPER[name](list(before))
    assert after != before
    ledger.path.write_bytes(b"".join(after))
    for use in (
        ledger.verify,
        ledger.events,
        ledger.recover,
        lambda: ledger.append("note", {}),
        lambda: ledger.guard(EVENT, 100.0, 1e-5),
        lambda: ledger.spend(EVENT, 100.0, 1e-5),
    ):
        with pytest.raises(LedgerError):
            use()
    assert ledger.path.read_bytes() == b"".join(after), "evidence is left as it is"


def test_another_file_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"epsilon": 0}\n')
    with pytest.raises(LedgerError):
        Ledger(path).epsilon(1e-5)


def test_a_cut_end_shows_against_a_head_kept_elsewhere(ledger: Ledger) -> None:
    head = ledger.head()
    ledger.verify(head)
    ledger.append("note", {})
    ledger.verify(head)
    ledger.path.write_bytes(b"".join(_lines(ledger)[:5]))
    ledger.verify()  # a chain alone cannot tell
    with pytest.raises(LedgerError, match="no longer holds"):
        ledger.verify(head)


def test_a_deleted_file_shows_against_a_head_kept_elsewhere(ledger: Ledger) -> None:
    head = ledger.head()
    ledger.path.unlink()
    with pytest.raises(LedgerError, match="no longer holds"):
        ledger.verify(head)


# crashes


@pytest.mark.parametrize("kept", [1, 50, -2])
def test_a_torn_end_is_refused_until_recovered(ledger: Ledger, kept: int) -> None:
    whole = _lines(ledger)
    ledger.path.write_bytes(b"".join(whole[:-1]) + whole[-1][:kept])
    for use in (ledger.entries, ledger.head, lambda: ledger.append("note", {})):
        with pytest.raises(LedgerError, match="recover"):
            use()
    torn = ledger.recover()
    assert torn == len(whole[-1][:kept])
    assert b"".join(_lines(ledger)[:-1]) == b"".join(whole[:-1])
    note = ledger.entries()[-1]
    assert note.kind == "note"
    assert note.payload["torn_bytes"] == torn
    assert ledger.recover() == 0
    assert ledger.entries()[-1] == note


def test_a_whole_entry_that_lost_its_newline_is_kept(ledger: Ledger) -> None:
    """Forgetting a spend costs privacy; nothing of this one is missing."""
    before, whole = ledger.entries(), ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-1])
    assert ledger.entries() == before
    assert ledger.recover() == 0
    assert ledger.path.read_bytes() == whole
    ledger.path.write_bytes(whole[:-1])
    ledger.append("note", {})
    assert ledger.entries()[:-1] == before


@pytest.mark.parametrize("end", [b"\x0b", b"\r", b"\0" * 100, b" "])
def test_a_whole_entry_whose_newline_was_damaged_is_kept(ledger: Ledger, end: bytes) -> None:
    before, whole = ledger.entries(), ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-1] + end)
    ledger.recover()
    assert ledger.entries() == before and ledger.path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b'{"hash":"ab'])
def test_a_ledger_without_its_first_entry_was_emptied(tmp_path: Path, content: bytes) -> None:
    book = Ledger(tmp_path / "ledger.jsonl")
    book.path.write_bytes(content)
    for use in (book.verify, book.recover, book.events, lambda: book.append("note", {})):
        with pytest.raises(LedgerError):
            use()
    assert book.path.read_bytes() == content


def test_a_file_system_without_locks_is_named(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, mode: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LedgerError, match="file system with locks"):
        ledger.entries()


WRITER = """
import os, sys
from pathlib import Path
from carefl_secure.privacy import Event, Ledger, SampledSkellam
ledger = Ledger(Path(sys.argv[1]))
event = {"event": SampledSkellam(0.05, 3.8e6, 3749.0, 1.4e7, 1).to_json(), "pad": "x" * 2000}
while True:
    ledger.append("spend", event)
    os.write(1, b".")  # the release
"""


def test_killed_writers_never_lose_a_released_spend(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.jsonl")
    chance = random.Random(7)
    released = 0
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(book.path)], stdout=subprocess.PIPE, cwd=REPOSITORY
        )
        assert process.stdout is not None
        with process.stdout as pipe:
            released += len(pipe.read(1))  # it runs
            time.sleep(chance.uniform(0.0, 0.05))
            process.send_signal(signal.SIGKILL)
            released += len(pipe.read())
        assert process.wait() == -signal.SIGKILL
        book.recover()
        book.verify()
        assert len(book.events()) >= released
    assert released >= 10
    # at most the one spend under way at each kill was written without its release being seen
    assert len(book.events()) <= released + 10


def test_gaussian_spends_are_priced_too(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.jsonl")
    for _ in range(10):
        book.spend(SampledGaussian(0.01, 1.0, 100), 2.0, 1e-5)
    assert book.epsilon(1e-5) == pytest.approx(1.828, abs=1e-3)
    with pytest.raises(BudgetExceededError):
        book.spend(SampledGaussian(0.01, 1.0, 300), 2.0, 1e-5)


def test_runs_of_different_units_are_refused_and_stages_are_one_run(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "units.jsonl")
    event = SampledGaussian(0.1, 1.5)
    entry = {"run": "one/1-basic", "unit": "record", "trust": "none", "planned": 40}
    book.spend(event, 8.0, 1e-5, entry)
    assert dict(book.entries()[-1].payload) == {**entry, "event": event.to_json()}
    for other in ({"unit": "person"}, {}):
        with pytest.raises(LedgerError, match="unit"):
            book.spend(event, 8.0, 1e-5, {"run": "two", **other})
    book.spend(event.times(2), 8.0, 1e-5, {**entry, "run": "one/2-compound"})
    first, later = split_runs(book.entries())
    assert (sum(e.count for e in first), later) == (3, [])
    # a later run finds the first one's whole plans, executed or not
    first, later = split_runs(book.entries(), "two", event)
    assert (sum(e.count for e in first), later) == (40 + 80, [event])
