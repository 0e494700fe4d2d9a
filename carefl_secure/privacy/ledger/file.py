"""A locked file of lines that is read whole and only ever grows at its end."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carefl_secure.errors import LedgerError

__all__ = ["LedgerFile"]

_PATIENCE = 10.0  # seconds to wait for another process to let go of the lock
_PAUSE = 0.01


class LedgerFile:
    """The bytes of a ledger: exclusive lock, append, fsync.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.

    Guarantees
    ----------
    ``append`` returns after the bytes and, for a new file, its folder entry went through fsync.
    The lock is advisory: it binds those who use this class.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._descriptor = -1

    @contextmanager
    def reading(self) -> Iterator[bytes]:
        """Hold a shared lock and give the whole content, empty where there is no file.

        Raises
        ------
        LedgerError
            The file cannot be read or another process holds it.
        """
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
    def writing(self) -> Iterator[bytes]:
        """Hold the exclusive lock and give the whole content; makes the file with mode 0600.

        Raises
        ------
        LedgerError
            The file cannot be opened for writing or another process holds it.
        """
        try:
            descriptor = os.open(
                self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise LedgerError(
                f"{self.path} cannot be written: {error.strerror}; check folder and rights"
            ) from error
        try:
            self._lock(descriptor, fcntl.LOCK_EX)
            content = self._content(descriptor)
            if not content:
                self._sync_folder()
            self._descriptor = descriptor
            yield content
        finally:
            self._descriptor = -1
            os.close(descriptor)

    def append(self, line: bytes) -> None:
        """Write one whole line to the end and return when it is on disk.

        Raises
        ------
        LedgerError
            The disk refused it; the end of the file may then be torn.
        """
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise LedgerError(
                f"{self.path} could not be written: {error.strerror}; nothing may be released. "
                "Make room and call recover()"
            ) from error

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes and return when that is on disk.

        Raises
        ------
        LedgerError
            The disk refused it.
        """
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
                    raise LedgerError(
                        f"{self.path} is held by another process; wait for that run to end"
                    ) from error
                time.sleep(_PAUSE)
            else:
                return

    def _content(self, descriptor: int) -> bytes:
        parts: list[bytes] = []
        while part := os.read(descriptor, 1 << 20):
            parts.append(part)
        return b"".join(parts)

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
