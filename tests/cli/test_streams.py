"""Output that is not UTF-8, full, or closed by its reader: a sentence or silence, never a trace."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from carefl_secure.cli.app import app
from carefl_secure.cli.streams import CLOSED_PIPE, run_with_streams
from carefl_secure.data.synthetic.corpus import default_cache
from carefl_secure.errors import DataError, OutputError, RunError


def use_output(monkeypatch: pytest.MonkeyPatch, descriptor: int, encoding: str = "utf-8", whole: bool = False) -> None:
    raw = io.FileIO(descriptor, "w")
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding, write_through=whole)
    monkeypatch.setattr(sys, "stdout", stream)


def result(text: str = "a result\n" * 2000) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("whole", [False, True])
def test_a_full_standard_output_gets_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whole: bool
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    use_output(monkeypatch, os.open("/dev/full", os.O_WRONLY), whole=whole)
    with pytest.raises(SystemExit) as end:
        run_with_streams(result)
    said = capsys.readouterr().err
    assert end.value.code == OutputError.exit_code
    assert said.startswith("error: cannot write to standard output") and said.count("\n") == 1


@pytest.mark.parametrize("whole", [False, True])
def test_a_closed_pipe_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whole: bool
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    use_output(monkeypatch, theirs, whole=whole)
    with pytest.raises(SystemExit) as end:
        run_with_streams(result)
    assert (end.value.code, capsys.readouterr().err) == (CLOSED_PIPE, "")


@pytest.mark.parametrize("closing", ["2>/dev/full", "2>&-", "2>&- 0<&-"])
@pytest.mark.parametrize("code", [0, 40])
def test_standard_error_that_is_full_or_closed_changes_nothing(tmp_path: Path, closing: str, code: int) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from carefl_secure.cli.streams import run_with_streams\n"
        "def app():\n"
        "    print('progress ' * 5000, file=sys.stderr)\n"
        f"    with open({str(tmp_path / 'ledger')!r}, 'w') as ledger:\n"
        "        assert ledger.fileno() > 2\n"
        "        print('progress', file=sys.stderr, flush=True)\n"
        "    print('the result')\n"
        f"    raise SystemExit({code})\n"
        "run_with_streams(app)\n"
    )
    line = f'exec "{sys.executable}" "{program}" {closing}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "the result\n")
    assert (tmp_path / "ledger").read_text() == ""


def test_an_error_of_another_file_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    use_output(monkeypatch, os.open(os.devnull, os.O_WRONLY))

    def fails() -> None:
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        run_with_streams(fails)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_written_in_ascii(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    ours, theirs = os.pipe()
    use_output(monkeypatch, theirs, encoding)
    run_with_streams(lambda: result("4.69 │▁▃▅██\n0 └── 笑\n"))
    sys.stdout.close()
    with open(ours, "rb") as read:
        shown = read.read()
    assert shown == b"4.69 |_.:##\n0 +-- \\u7b11\n\n"


def test_a_user_without_a_home_folder_is_told_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("CAREFL_CACHE", raising=False)
    with pytest.raises(DataError, match=r"data\.cache_dir.*CAREFL_CACHE"):
        default_cache()


def test_a_run_folder_that_cannot_be_written_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    runs, cache = tmp_path / "taken" / "runs", tmp_path / "cache"
    options = ["--epsilon", "8", "--run-dir", str(runs), "--set", f"data.cache_dir={cache}"]
    done = CliRunner().invoke(app, ["train", *options])
    assert done.exit_code == RunError.exit_code and "run.dir" in done.stderr
    assert not cache.exists()
