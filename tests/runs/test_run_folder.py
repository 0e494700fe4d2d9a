"""The run folder: layout, atomic writes, and refusals."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from carefl_secure import run_folder as module
from carefl_secure.config import load_config
from carefl_secure.errors import RunError
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import (
    Interrupted,
    RunFolder,
    check_start,
    new_run_id,
    require_writable,
    write_atomically,
)
from carefl_secure.runs import train as runs_train


def test_create_makes_the_layout_and_open_finds_it(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path / "runs", "rounds: 3\n")
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", made.run_id)
    assert made.config.read_text() == "rounds: 3\n"
    assert made.adapter.is_dir()
    assert made.checkpoint.parent.is_dir()
    assert RunFolder.open(made.path).run_id == made.run_id


def test_two_runs_of_one_second_have_two_names() -> None:
    assert len({new_run_id() for _ in range(50)}) == 50


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "", "one")
    with pytest.raises(RunError, match="already"):
        RunFolder.create(tmp_path, "", "one")


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.yaml"):
        RunFolder.open(tmp_path)


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(RunError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_metrics_grow_row_by_row_and_can_be_cut(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "")
    assert folder.read_metrics() == []
    rows = [{"round": i, "epsilon": 0.5 * i, "note": "x"} for i in (1, 2, 3)]
    for row in rows:
        folder.append_metrics(row)
    assert folder.read_metrics() == rows
    folder.keep_metrics(2)
    assert folder.read_metrics() == rows[:2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_is_refused(tmp_path: Path, bad: float) -> None:
    folder = RunFolder.create(tmp_path, "")
    folder.append_metrics({"round": 1, "loss": 0.5})
    with pytest.raises(RunError, match="loss"):
        folder.append_metrics({"round": 2, "loss": bad})
    assert len(folder.read_metrics()) == 1


def test_torn_figures_are_passed_over(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "")
    folder.metrics.write_text('{"round": 1}\n[2]\n{"loss": 1.0}\n{"rou')
    assert folder.read_metrics() == [{"round": 1}]
    folder.append_metrics({"round": 2, "loss": 0.5})
    assert len(folder.metrics.read_text().splitlines()) == 2


def test_metrics_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "")
    folder.metrics.mkdir()
    with pytest.raises(RunError, match="metrics"):
        folder.read_metrics()


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path / "runs" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"run\.dir"):
        require_writable(tmp_path / "file" / "runs")


def test_a_checkpoint_comes_back_with_types_and_bits(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "")
    vector = np.array([1.5, -0.0, np.pi], np.float32)
    folder.write_checkpoint({"adapter": vector, "round": 4, "rate": 0.1, "plan": "ab"})
    state = folder.read_checkpoint()
    assert state["adapter"].dtype == np.float32
    assert state["adapter"].tobytes() == vector.tobytes()
    assert (state["round"], state["rate"], state["plan"]) == (4, 0.1, "ab")
    assert type(state["round"]) is int


def test_a_checkpoint_holds_no_objects(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "")
    with pytest.raises(RunError, match="thing"):
        folder.write_checkpoint({"thing": object()})
    assert not folder.checkpoint.exists()


def test_missing_and_damaged_checkpoints_are_told_apart(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "")
    with pytest.raises(RunError, match="no checkpoint"):
        folder.read_checkpoint()
    folder.write_checkpoint({"adapter": np.zeros(100, np.float32)})
    whole = folder.checkpoint.read_bytes()
    for damaged in (whole[:50], b"", b"\x00" * 200):
        folder.checkpoint.write_bytes(damaged)
        with pytest.raises(RunError, match="damaged"):
            folder.read_checkpoint()


def test_what_a_run_must_not_start_over(tmp_path: Path) -> None:
    """Neither a finished run nor a taken name; a report of an unfinished one changes nothing."""
    folder = RunFolder.create(tmp_path, "", "one")
    with pytest.raises(RunError, match="already a run"):
        check_start(folder.path, resume=False)
    check_start(tmp_path / "two", resume=False)
    with pytest.raises(RunError, match="not a run folder"):
        check_start(tmp_path / "two", resume=True)
    (folder.adapter / "README.md").touch()
    check_start(folder.path, resume=True)
    (folder.adapter / "adapter_model.safetensors").touch()
    with pytest.raises(RunError, match="finished"):
        check_start(folder.path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_library_call_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    def read(*given: object) -> None:
        raise AssertionError("records were read")

    monkeypatch.setattr(runs_train, "load_stages", read)
    folder = RunFolder.create(tmp_path, "", "one")
    (folder.adapter / "adapter_model.safetensors").touch()
    config = load_config(None, [f"run.dir={tmp_path}", "run.name=one"])
    with pytest.raises(RunError, match="finished" if resume else "already a run"):
        runs_train.train(config, SilentReporter(), folder.path if resume else None)


@pytest.mark.parametrize("finished", [0, 1])
def test_an_interrupted_run_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int) -> None:
    class Stopped:
        def __init__(self, config: object, reporter: object, path: Path, *rest: object) -> None:
            assert not path.exists() and notes == [f"run folder: {path}"]  # named at the start
            self.folder = RunFolder.create(path.parent, "", path.name)

        def run(self, held: object) -> None:
            if finished:
                self.folder.write_checkpoint({"round": 1})
            raise KeyboardInterrupt

    notes: list[str] = []
    reporter = SilentReporter()
    monkeypatch.setattr(reporter, "note", notes.append)
    monkeypatch.setattr(runs_train, "_Run", Stopped)
    with pytest.raises(Interrupted) as stop:
        runs_train.train(load_config(None, [f"run.dir={tmp_path}"]), reporter)
    (path,) = tmp_path.iterdir()
    assert stop.value.folder == path and stop.value.resumable == bool(finished)
    said = f"--resume {path}" if finished else "nothing to resume"
    assert said in str(stop.value)


def test_one_command_at_a_time_goes_on_with_a_run(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path, "")
    code = (
        "import sys; from pathlib import Path; from carefl_secure.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).held(): print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(made.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another command"), made.held():
            pass
        other.kill()  # a process that dies leaves no lock behind
    with made.held():
        pass
