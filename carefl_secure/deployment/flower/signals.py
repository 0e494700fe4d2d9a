"""SIGTERM, which service managers and containers send, is to end a command as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["interrupt_on_terminate"]


def interrupt_on_terminate() -> Callable[[], None]:
    """Turn SIGTERM into the interrupt that Ctrl-C is, so that processes are ended in both cases.

    Returns
    -------
    callable() -> None
        Puts the former handler back.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    return lambda: (signal.signal(signal.SIGTERM, before), None)[1]
