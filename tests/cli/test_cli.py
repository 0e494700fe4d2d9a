from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import typer
from click.testing import Result
from rich.text import Text
from typer.testing import CliRunner

from carefl_secure import __version__, errors
from carefl_secure.cli import app
from carefl_secure.cli.app import SETTINGS
from carefl_secure.config import Config
from carefl_secure.progress import Reporter, SilentReporter
from carefl_secure.run_folder import Interrupted


@dataclass
class FakeSummary:
    folder: Path
    rows: list[dict[str, Any]]
    baselines: dict[str, float]
    before: dict[str, float]
    after: dict[str, float]
    promise: str
    seconds: float
    stages: tuple[()] = ()
    remarks: tuple[str, ...] = ()
    verdict: str = ""


SUMMARY = FakeSummary(
    folder=Path("runs") / "one",
    rows=[
        {"round": 1, "epsilon": 1.25, "survivors": 8, "bytes_up": 81920, "bytes_down": 164000, "seconds": 0.5},
        {"round": 2, "epsilon": 2.5, "mAP": 0.4125, "macro_f1": 0.25, "survivors": 7},
    ],
    baselines={"constant": 0.15, "colour_histogram": 0.2},
    before={"mAP": 0.3, "macro_f1": 0.2},
    after={"mAP": 0.4125, "macro_f1": 0.25},
    promise="Each record is protected [with epsilon 2.5].",
    seconds=12.34,
)


def put(monkeypatch: pytest.MonkeyPatch, package: str, module: str, **names: object) -> None:
    """Stand a made-up module in for one of the package's."""
    fake = ModuleType(f"{package}.{module}")
    vars(fake).update(names)
    monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


class Trainer:
    """Stands in for the training function, and remembers what it was called with."""

    def __init__(self) -> None:
        self.config: Config | None = None
        self.reporter: Reporter | None = None
        self.raises: BaseException | None = None
        self.summary = SUMMARY

    def __call__(
        self,
        config: Config,
        reporter: Reporter,
        resume: Path | None = None,
        engine: object = None,
        confirm: object = None,
    ) -> FakeSummary:
        self.config, self.reporter = config, reporter
        if self.raises is not None:
            raise self.raises
        reporter.start("features", 8)
        for _ in range(8):
            reporter.advance("features")
        reporter.finish("features")
        reporter.note("a [bold] sentence")
        for row in self.summary.rows:
            reporter.round(row)
        return self.summary


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    found = Trainer()
    put(monkeypatch, "carefl_secure.runs", "train", train=found)
    return found


@pytest.fixture
def run() -> Callable[..., Result]:
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(
    "words", [["status", "RUN"], ["predict", "RUN", "x.png"], ["report", "RUN"], ["runs", "list", "RUN"]]
)
def test_a_path_that_the_system_refuses_is_a_sentence(run: Callable[..., Result], words: list[str]) -> None:
    result = run(*("x" * 300 if word == "RUN" else word for word in words))
    assert result.exit_code == 40 and "File name too long; check the path" in result.stderr.replace("\n", " ")


def test_result_on_stdout_and_progress_on_stderr(trainer: Trainer, run: Callable[..., Result]) -> None:
    result = run("train", "--epsilon", "4")
    assert result.exit_code == 0
    out = result.stdout
    assert SUMMARY.promise in out
    assert str(SUMMARY.folder) in out
    for text in ("baseline: colour histogram", "0.200", "before", "after", "0.412", "81.9 kB", " 2.5 "):
        assert text in out
    assert "a [bold] sentence" not in out
    lines = result.stderr.splitlines()
    assert lines[:3] == ["features: 8 steps", "features: 2/8", "features: 4/8"]
    assert "features: done" in lines
    assert "a [bold] sentence" in lines
    assert any(line.startswith("round 2  epsilon 2.5  mAP 0.412") for line in lines)
    assert "\x1b" not in out + result.stderr


def test_options_reach_the_configuration(trainer: Trainer, run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("adapter: {rank: 4}\n", encoding="utf-8")
    photos = tmp_path / "photos"
    photos.mkdir()
    words = ["--epsilon", "4", "--data", str(photos), "--config", str(file), "--rounds", "7"]
    words += ["--clients", "9", "--run-dir", "elsewhere", "--set", "privacy.delta=1e-7"]
    words += ["--set", "adapter.train=both"]
    assert run("train", *words).exit_code == 0
    config = trainer.config
    assert config is not None
    assert config.privacy.epsilon == 4
    assert config.privacy.delta == 1e-7
    assert config.data.source == str(photos)
    assert (config.adapter.rank, config.adapter.train) == (4, "both")
    assert (config.federation.rounds, config.federation.clients) == (7, 9)
    assert config.run.dir == Path("elsewhere")


def test_json_is_all_there_is_on_stdout(trainer: Trainer, run: Callable[..., Result]) -> None:
    trainer.summary = FakeSummary(**{**vars(SUMMARY), "rows": [{"round": 1, "epsilon": float("inf"), "mAP": None}]})
    result = run("train", "--json")
    found = json.loads(result.stdout)
    assert found["after"] == SUMMARY.after
    assert found["baselines"] == SUMMARY.baselines
    assert found["folder"] == str(SUMMARY.folder)
    assert found["promise"] == SUMMARY.promise
    assert found["rounds"] == [{"round": 1, "epsilon": None, "mAP": None}]
    assert "round 1" in result.stderr


def test_quiet_shows_the_result_only(trainer: Trainer, run: Callable[..., Result]) -> None:
    result = run("train", "--quiet")
    assert isinstance(trainer.reporter, SilentReporter)
    assert result.stderr == ""
    assert SUMMARY.promise in result.stdout


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_every_error_has_its_exit_code(
    trainer: Trainer, run: Callable[..., Result], kind: type[errors.CareflError]
) -> None:
    trainer.raises = kind("mend [this] now")
    result = run("train")
    assert result.exit_code == kind.exit_code
    assert result.stderr.splitlines() == ["error: mend [this] now"]
    assert result.stdout == ""


def test_interruption(trainer: Trainer, run: Callable[..., Result]) -> None:
    trainer.raises = KeyboardInterrupt()
    result = run("train")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


@pytest.mark.parametrize(
    ("words", "again"), [([], "--resume runs/one"), (["--engine", "ray"], "--resume runs/one --engine ray")]
)
def test_an_interruption_names_the_folder_and_the_command(
    trainer: Trainer, run: Callable[..., Result], words: list[str], again: str
) -> None:
    trainer.raises = Interrupted(Path("runs/one"), resumable=True)
    result = run("train", "--quiet", *words)
    assert result.exit_code == 130
    assert result.stderr == (f"interrupted; the run folder is runs/one; go on with: carefl-secure train {again}\n")
    trainer.raises = Interrupted(Path("runs/one"), resumable=False)
    result = run("train", "--quiet", *words)
    assert "runs/one" in result.stderr and "nothing to resume" in result.stderr
    assert "go on with" not in result.stderr


def test_an_unforeseen_error_is_not_hidden(trainer: Trainer, run: Callable[..., Result]) -> None:
    trainer.raises = ZeroDivisionError()
    result = run("train")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_wrong_settings_stop_before_anything_heavy(trainer: Trainer, run: Callable[..., Result]) -> None:
    result = run("train", "--set", "privacy.epsilom=3")
    assert result.exit_code == 2
    assert "did you mean 'privacy.epsilon'" in result.stderr
    assert run("train", "--epsilon", "nan").exit_code == 2
    assert run("train", "--epsilom", "3").exit_code == 2
    assert trainer.config is None


def test_version_and_help(run: Callable[..., Result]) -> None:
    assert run("--version").stdout == f"carefl-secure {__version__}\n"
    assert run("-V").exit_code == 0
    shown = run("--help").stdout
    for group in ("Train", "Use and score", "Follow and explain", "Between sites"):
        assert f"─ {group} ─" in shown
    assert "─ Commands ─" not in shown  # no command is without a group
    assert "carefl-secure train --epsilon 8" in shown


def test_pretrain(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result], tmp_path: Path) -> None:
    seen: dict[str, object] = {}

    def fake(output: Path, *, seed: int, steps: int | None, reporter: Reporter) -> Path:
        seen.update(output=output, seed=seed, steps=steps)
        reporter.note("working")
        return output / "made"

    put(monkeypatch, "carefl_secure.model", "pretrain", pretrain=fake)
    result = run("pretrain", str(tmp_path), "--seed", "3", "--steps", "5")
    assert seen == {"output": tmp_path, "seed": 3, "steps": 5}
    assert "made" in result.stdout
    assert "working" in result.stderr
    result = run("pretrain", str(tmp_path), "--quiet")
    assert (seen["steps"], result.stderr) == (None, "")
    assert run("pretrain", str(tmp_path), "--steps", "0").exit_code == 2


def test_environment_stands_before_torch_and_flower(
    trainer: Trainer, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # a person's own wish is left alone
    seen: dict[str, str] = {}
    inner = trainer.__call__

    def look(config: Config, reporter: Reporter, resume: Path | None = None, *rest: object) -> FakeSummary:
        seen.update({name: os.environ[name] for name in SETTINGS})
        return inner(config, reporter)

    put(monkeypatch, "carefl_secure.runs", "train", train=look)
    assert run("train", "--quiet").exit_code == 0
    assert seen == {**SETTINGS, "OMP_WAIT_POLICY": "ACTIVE"}


def test_a_finished_run_is_not_resumed(trainer: Trainer, run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: one}\n")
    (tmp_path / "adapter").mkdir()
    assert run("train", "--resume", str(tmp_path)).exit_code == 0
    trainer.config = None
    (tmp_path / "adapter" / "adapter_model.safetensors").touch()
    result = run("train", "--resume", str(tmp_path))
    assert result.exit_code == errors.RunError.exit_code
    assert "nothing to resume" in result.stderr
    assert trainer.config is None


def test_a_name_that_is_taken_is_refused_at_once(trainer: Trainer, run: Callable[..., Result], tmp_path: Path) -> None:
    words = ["train", "--run-dir", str(tmp_path), "--set", "run.name=one"]
    assert run(*words).exit_code == 0
    trainer.config = None
    (tmp_path / "one").mkdir()
    result = run(*words)
    assert result.exit_code == errors.RunError.exit_code
    assert "choose another name" in result.stderr
    assert trainer.config is None


def parameters() -> list[tuple[str, str]]:
    """Return the help of every option of every command, with its command."""
    found = []

    def walk(command: click.Command, name: str) -> None:
        found.append((name, command.help or ""))
        found.extend((name, getattr(one, "help", None) or "") for one in command.params)
        for inner in getattr(command, "commands", {}).values():
            walk(inner, f"{name} {inner.name}".strip())

    walk(typer.main.get_command(app), "")
    return found


@pytest.mark.parametrize(("command", "text"), parameters())
def test_help_shows_every_bracket(command: str, text: str) -> None:
    assert Text.from_markup(text).plain == text.replace("\\[", "[")


def test_help_names_the_extras_to_install(run: Callable[..., Result]) -> None:
    out = " ".join(run("train", "--help").stdout.replace("│", " ").split())
    assert "carefl-secure[ray]" in out
    assert "carefl-secure[tracking]" in out


def test_sigterm_ends_a_command_as_ctrl_c_does() -> None:
    code = (
        "import os, signal, sys; import carefl_secure.cli.app; app = sys.modules['carefl_secure.cli.app']\n"
        "app.run_with_streams = lambda command: os.kill(os.getpid(), signal.SIGTERM)\n"
        "try: app.main()\nexcept KeyboardInterrupt: print('interrupted')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "interrupted\n", done.stderr
