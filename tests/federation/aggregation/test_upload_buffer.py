"""Uploads wait on disk, and a client that the members leave out is taken off the sum again."""

from __future__ import annotations

import errno
import gc
import os
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from carefl_secure.errors import CohortError, EngineError, RunError
from carefl_secure.federation.aggregation import committee as sum_committee
from carefl_secure.federation.aggregation.upload_buffer import UploadBuffer
from carefl_secure.federation.transport.local_grid import FIRST_NODE
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg import CommitteeClient

MEGABYTE = 1 << 20


def open_files(folder: Path) -> int:
    """Count this process's open files under a folder, those without a name too."""
    found = 0
    for handle in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(handle).startswith(str(folder.resolve()))
        except FileNotFoundError:  # the handle of this very listing
            continue
    return found


def test_messages_come_back_as_they_were_in_any_order(tmp_path: Path) -> None:
    spool = UploadBuffer(tmp_path)
    messages = {7: os.urandom(1000), 3: b"", 5: os.urandom(70_000)}
    for index, message in messages.items():
        spool.keep(index, message)
    for index in (5, 7, 3, 5):
        assert spool.take(index) == messages[index]
    spool.keep(7, b"newer")
    assert spool.take(7) == b"newer"
    with pytest.raises(EngineError, match="no message 9"):
        spool.take(9)


def test_the_file_has_no_name_and_ends_with_close_or_with_its_owner(tmp_path: Path) -> None:
    spool = UploadBuffer(tmp_path)
    assert open_files(tmp_path) == 0  # nothing before the first message
    spool.keep(1, b"x" * 5000)
    assert list(tmp_path.iterdir()) == []
    assert open_files(tmp_path) == 1
    spool.close()
    assert open_files(tmp_path) == 0
    with pytest.raises(EngineError):
        spool.take(1)
    spool.keep(1, b"again")
    assert spool.take(1) == b"again"
    del spool
    gc.collect()
    assert open_files(tmp_path) == 0


def test_what_is_kept_takes_no_memory(tmp_path: Path) -> None:
    spool = UploadBuffer(tmp_path)
    tracemalloc.start()
    try:
        for index in range(32):
            spool.keep(index, bytes(MEGABYTE))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MEGABYTE
    assert held < MEGABYTE


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, offset: int, whence: int = 0) -> int:
            return 0

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(RunError, match=r"No space left on device; free some space"):
        UploadBuffer(tmp_path).keep(1, b"x")


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        UploadBuffer(tmp_path / "gone").keep(1, b"x")


def keys(index: int) -> DeterministicKeySource:
    return DeterministicKeySource(b"spool %d" % index)


def make(make_bench: Callable[..., Any]) -> Any:
    return make_bench(5, aggregation="committee", unit="none", sample_rate=0.999999, key_source=keys)


def test_a_client_whose_envelope_fails_is_taken_off_the_sum_from_disk(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = make(make_bench).start(
        drop=lambda node, message: node == FIRST_NODE + 4 and message.metadata.message_type == "train.submit"
    )
    honest = CommitteeClient._contents

    def contents(self: CommitteeClient, seeds: list[bytes]) -> list[bytes]:
        found = honest(self, seeds)
        return [found[0], bytes(len(found[1])), *found[2:]] if self.index == 4 else found

    monkeypatch.setattr(CommitteeClient, "_contents", contents)
    taken = []

    class Watched(UploadBuffer):
        def take(self, index: int) -> bytes:
            taken.append(index)
            return super().take(index)

    monkeypatch.setattr(sum_committee, "UploadBuffer", Watched)
    bench = make(make_bench)
    adapter = bench.start()
    assert taken == [4]
    assert bench.rows[0]["survivors"] == 4
    assert np.array_equal(adapter, without)
    assert open_files(bench.folder.path) == 0


def test_a_round_that_fails_leaves_no_upload_behind(make_bench: Callable[..., Any]) -> None:
    def drop(node: int, message: Message) -> bool:
        return node >= FIRST_NODE + 5 and message.metadata.message_type == "query.committee_open"

    bench = make(make_bench)
    with pytest.raises(CohortError):
        bench.start(drop=drop)
    gc.collect()
    assert open_files(bench.folder.path) == 0
    assert bench.releases() == 0


def test_a_full_disk_under_the_uploads_opens_nothing(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(make_bench)

    def full(self: UploadBuffer, index: int, message: bytes) -> None:
        raise self._failed("write", OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(UploadBuffer, "keep", full)
    with pytest.raises(RunError, match="nothing of this round was opened"):
        bench.start()
    assert bench.server_spends() == 0  # no privacy, no spend
    assert bench.releases() == 0
