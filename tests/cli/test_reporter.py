from __future__ import annotations

import io

import pytest
from rich.console import Console

from carefl_secure.cli.reporter import RichReporter, figure, row_line, signal_to_noise


def terminal() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=True, width=80, color_system=None), text


def log() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=40), text


def test_a_terminal_gets_a_bar_and_whole_lines_above_it() -> None:
    console, text = terminal()
    with RichReporter(console) as reporter:
        reporter.start("features", 10)
        reporter.advance("features", 4)
        reporter._progress.refresh()  # else the clock decides when the bar is drawn
        reporter.note("one [sentence]")
        reporter.round({"round": 1, "mAP": 0.5})
        reporter.finish("features")
        reporter.start("features", 3)  # a task may come again
    shown = text.getvalue()
    assert "4/10" in shown
    assert "one [sentence]" in shown
    assert "round 1  mAP 0.500" in shown
    assert "\x1b[?25h" in shown  # the cursor is given back


def test_the_cursor_is_given_back_after_an_error() -> None:
    console, text = terminal()
    with pytest.raises(ZeroDivisionError), RichReporter(console) as reporter:
        reporter.start("features", 10)
        raise ZeroDivisionError
    assert text.getvalue().rstrip().endswith("\x1b[?25h")


def test_a_log_gets_plain_lines_that_are_never_cut() -> None:
    console, text = log()
    long = "word " * 30
    with RichReporter(console) as reporter:
        reporter.start("features", 100)
        for _ in range(50):
            reporter.advance("features", 3)  # more than was announced
        reporter.finish("features")
        reporter.start("short", 2)
        reporter.advance("short")
        reporter.finish("short")
        reporter.note(long)
    assert text.getvalue().splitlines() == [
        "features: 100 steps",
        "features: 27/100",
        "features: 51/100",
        "features: 75/100",
        "features: done",
        "short: 2 steps",
        "short: done",
        long,
    ]


def test_what_was_never_started_is_ignored() -> None:
    console, text = log()
    with RichReporter(console) as reporter:
        reporter.advance("ghost")
        reporter.finish("ghost")
        reporter.start("nothing", 0)
        reporter.advance("nothing")
    assert "ghost" not in text.getvalue()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("mAP", 0.41251, "0.413"),
        ("mAP", None, ""),
        ("round", 3, "3"),
        ("epsilon", float("inf"), "infinite"),
        ("seconds", 2, "2"),
        ("seconds", 2.345, "2.3"),
        ("bytes_up", 999, "999 B"),
        ("bytes_up", 81920, "81.9 kB"),
        ("bytes_up", 2.5e6, "2.5 MB"),
        ("bytes_up", 3e12, "3e+03 GB"),
        ("state", "done", "done"),
        ("ok", True, "True"),
    ],
)
def test_figures(name: str, value: object, text: str) -> None:
    assert figure(name, value) == text


def test_a_terminal_wraps_at_words() -> None:
    console, text = terminal()
    with RichReporter(console) as reporter:
        reporter.note("protected " * 12)
        reporter.round({f"figure_{i}": 0.5 for i in range(9)})
    for line in text.getvalue().splitlines():
        words = [word for word in line.split() if word.isalpha() and len(word) > 2]
        assert set(words) <= {"protected"}, line  # no word is cut at the edge
    assert "figure_4 0.500" in text.getvalue().replace("\n", " ")


@pytest.mark.parametrize(
    ("opened", "noise", "text"),
    [
        (2.0**0.5, 1.0, "1.00 (clear)"),
        (1.1, 1.0, "0.46 (weak)"),
        (1.001, 1.0, "0.04 (lost in the noise)"),
        (0.99, 1.0, "0.00 (lost in the noise)"),  # by chance
        (0.5, 0.0, "no noise"),
    ],
)
def test_signal_to_noise(opened: float, noise: float, text: str) -> None:
    assert signal_to_noise(opened, noise) == text
    row = {"round": 3, "gradient_norm": opened, "noise_norm": noise, "seconds": 1.0}
    assert row_line(row) == f"round 3  seconds 1.0  signal/noise {text}"
    banded = f"{text.partition(' ')[0]} (this round alone)" if noise else text  # later rounds cancel part of the noise
    assert row_line({**row, "bands": 5}) == f"round 3  seconds 1.0  signal/noise {banded}"


def test_epsilon_is_rounded_up() -> None:
    assert figure("epsilon", 5.0001) == "5.001" and figure("mAP", 0.50001) == "0.500"


def test_a_log_shows_a_task_within_another_once_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("carefl_secure.cli.reporter.time.monotonic", lambda: now[0])
    console, text = log()
    with RichReporter(console) as reporter:
        reporter.start("rounds", 2)
        for name, seconds in (("round 1, upload", 1.0), ("round 2, upload", 4.0)):
            reporter.start(name, 8)
            for _ in range(8):
                now[0] += seconds
                reporter.advance(name)
            reporter.finish(name)
    assert text.getvalue().splitlines() == [
        "rounds: 2 steps",
        "round 2, upload: 4/8",
        "round 2, upload: 6/8",
        "round 2, upload: done",
    ]
