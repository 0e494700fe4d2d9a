"""Standard output and error that cannot show every character, are full, or are closed."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from carefl_secure.errors import OutputError

CLOSED_PIPE = 141
"""Exit code where the reader of standard output is gone: 128 and SIGPIPE, as shells have it."""

_HANDLER = "carefl-secure-ascii"
_ASCII = dict(zip("▁▂▃▄▅▆▇█│─└–", "__..::##|-+-", strict=True))


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Write the signs of charts in ASCII, and every other character as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = (_ASCII.get(one) or one.encode("ascii", "backslashreplace").decode() for one in text)
    return "".join(shown), error.end


class _Output(io.TextIOWrapper):
    """Standard output that remembers why it could not be written."""

    fault: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.fault = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.fault = error
            raise


class _Messages(io.TextIOWrapper):
    """Standard error; from the first failure on its text is discarded, and the command goes on."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _discard(self)

    def close(self) -> None:
        self.flush()  # the stream below is not its own


def _discard(stream: io.TextIOWrapper) -> None:
    """Send a stream, and what is left in its buffer, to the null device."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextmanager
def _messages() -> Iterator[None]:
    """Take standard error as it is: in any encoding, full, or closed."""
    for number in range(3):  # else the next file to be opened would be standard output or error
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    given = sys.stderr
    if given is None:
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(os.devnull, "w")))
    elif isinstance(given, io.TextIOWrapper):
        sys.stderr = _Messages(given.buffer, given.encoding, _HANDLER, line_buffering=True, write_through=True)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = given


def run_with_streams(app: Callable[[], object]) -> None:
    """Call the command line; a full standard output ends in a sentence, a closed pipe silently; other errors pass."""
    codecs.register_error(_HANDLER, _in_ascii)
    with _messages():
        _run(app)


def _run(app: Callable[[], object]) -> None:
    if not isinstance(sys.stdout, io.TextIOWrapper):  # None where the shell has closed it
        app()
        return
    given = sys.stdout
    output = sys.stdout = _Output(
        given.buffer, given.encoding, _HANDLER, line_buffering=given.line_buffering, write_through=given.write_through
    )
    try:
        try:
            app()
        finally:
            output.flush()
    except (OSError, SystemExit) as end:
        fault = output.fault
        if fault is None:
            raise
        _discard(output)  # what is left in the buffer would fail again when the interpreter ends
        if fault.errno == errno.EPIPE:
            raise SystemExit(CLOSED_PIPE) from None
        text = f"error: cannot write to standard output: {fault.strerror}; free some space"
        sys.stderr.write(text + "\n")
        raise SystemExit(OutputError.exit_code) from end
