"""A locked file of lines that is read whole and only ever grows at its end."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carefl_secure.errors import LedgerError

_PATIENCE = 10.0  # seconds to wait for another process to let go of the lock
_PAUSE = 0.01


class LedgerFile:
    """The bytes of a ledger: exclusive lock, append, fsync. The folder of ``path`` must exist.

    Guarantees
    ----------
    ``append`` returns after the bytes and, for a new file, its folder entry went through fsync. A file is never
    visible without its first line. The lock is advisory: it binds those who use this class.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._descriptor = -1

    @contextmanager
    def reading(self) -> Iterator[bytes]:
        """Hold a shared lock and give the whole content, empty where there is no file."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield b""
            return
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be read: {error.strerror}") from error
        try:
            self._lock(descriptor, fcntl.LOCK_SH)
            yield self._content(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def writing(self, first: bytes) -> Iterator[bytes]:
        """Hold the exclusive lock and give the whole content.

        A file that does not exist is made with the line ``first`` and mode 0600. LedgerError where
        it cannot be opened, is empty, or another process holds it; so for ``reading``.
        """
        try:
            if not self.path.exists():
                self._make(first)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be written: {error.strerror}; check folder and rights") from error
        try:
            self._lock(descriptor, fcntl.LOCK_EX)
            self._descriptor = descriptor
            yield self._content(descriptor)
        finally:
            self._descriptor = -1
            os.close(descriptor)

    def _make(self, first: bytes) -> None:
        """Make the file whole under its name, so that nobody ever finds it empty."""
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.{threading.get_ident()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(first)
            os.fsync(descriptor)
            os.link(draft, self.path)
        except FileExistsError:
            return  # another process was faster
        finally:
            os.close(descriptor)
            os.unlink(draft)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def append(self, line: bytes) -> None:
        """Write one whole line to the end and return when it is on disk; a LedgerError may leave the end torn."""
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise LedgerError(
                f"{self.path} could not be written: {error.strerror}; nothing may be released. "
                "Make room, then run `carefl-secure ledger recover`"
            ) from error

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes and return when that is on disk."""
        try:
            os.ftruncate(self._descriptor, size)
            os.fsync(self._descriptor)
        except OSError as error:
            raise LedgerError(f"{self.path} could not be cut: {error.strerror}") from error

    def _lock(self, descriptor: int, mode: int) -> None:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise LedgerError(f"{self.path} is held by another process; wait for that run to end") from error
                time.sleep(_PAUSE)
            except OSError as error:
                raise LedgerError(
                    f"{self.path} cannot be locked: {error.strerror}; keep ledgers on a file "
                    "system with locks, such as a local disk"
                ) from error
            else:
                return

    def _content(self, descriptor: int) -> bytes:
        try:
            with open(descriptor, "rb", closefd=False) as file:
                whole = file.read()
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be read: {error.strerror}; restore it from a backup") from error
        if not whole:
            raise LedgerError(
                f"{self.path} is EMPTY: a ledger always holds its first entry, so it was emptied "
                "or the disk lost it; restore it from a backup"
            )
        return whole
