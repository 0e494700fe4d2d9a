"""Messages that are needed once more before a round ends: on disk meanwhile, never in memory."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import IO

from carefl_secure.errors import EngineError, RunError


class UploadBuffer:
    """Byte strings by number, in an unnamed file in ``folder``, by default the system's for temporary files.

    Guarantees
    ----------
    What is kept goes to disk at once and takes no memory, unless that folder is memory. The file has no name where the
    system allows that (Linux does), so it is gone with `close`, this object or the process, whichever is first.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._places: dict[int, tuple[int, int]] = {}

    def keep(self, index: int, message: bytes) -> None:
        """Add one message; one kept before under this number is forgotten."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(  # noqa: SIM115 - the next line ends it
                    dir=self._folder, buffering=0
                )
                weakref.finalize(self, self._file.close)
            start, left = self._file.seek(0, 2), memoryview(message)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise self._failed("write", error) from error
        self._places[index] = start, len(message)

    def take(self, index: int) -> bytes:
        """Return a message that was kept."""
        if self._file is None or index not in self._places:
            raise EngineError(f"no message {index} was kept; this is a fault in the program")
        start, length = self._places[index]
        pieces = []
        try:
            self._file.seek(start)
            while length and (piece := self._file.read(length)):
                pieces.append(piece)
                length -= len(piece)
        except OSError as error:
            raise self._failed("read", error) from error
        if length:
            raise RunError(f"message {index} was cut short on disk; check the disk, start a round")
        return b"".join(pieces)

    def close(self) -> None:
        """Forget everything."""
        self._places.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _failed(self, what: str, error: OSError) -> RunError:
        where = self._folder or tempfile.gettempdir()
        return RunError(
            f"cannot {what} what clients sent under {where}: {error.strerror}; free some space "
            "and resume the run, nothing of this round was opened"
        )
