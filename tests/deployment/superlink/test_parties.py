"""A SuperLink that is gone is noticed, and not asked all the time."""

from __future__ import annotations

import time

import pytest

from carefl_secure.deployment.superlink.parties import Pulse
from carefl_secure.errors import EngineError


def test_a_superlink_that_does_not_answer_for_long_is_gone() -> None:
    answers = iter([True, False, False, False])
    pulse = Pulse(lambda: next(answers), every=0.0, patience=0.05)
    pulse()
    pulse()
    with pytest.raises(EngineError, match="resume the run"):
        for _ in range(2):
            time.sleep(0.06)
            pulse()


def test_a_superlink_is_not_asked_all_the_time() -> None:
    asked: list[int] = []
    pulse = Pulse(lambda: bool(asked.append(1)) or True, every=3600.0)
    for _ in range(100):
        pulse()
    assert not asked
