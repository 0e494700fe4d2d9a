"""Figures of a run in Weights & Biases: files in the run folder, or its service where ``WANDB_MODE=online`` asks."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from carefl_secure.errors import RunError
from carefl_secure.run_folder import RunFolder, write_atomically
from carefl_secure.runs.trackers.base import Row, Tracker, figures_of, settings_of

# Reports of its own errors to its makers are off before it is imported.
os.environ["WANDB_ERROR_REPORTING"] = "false"

import wandb


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except (wandb.Error, OSError) as error:
        text = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(f"W&B fails: {text}; correct that, or leave wandb out of run.trackers") from error


class _Run:
    """One W&B run; its number and the rounds sent are kept in the run folder, for resumptions."""

    def __init__(self, folder: RunFolder) -> None:
        online = os.environ.get("WANDB_MODE") == "online"
        self._kept = folder.path / "wandb_run"
        words = self._kept.read_text().split() if self._kept.is_file() else [secrets.token_hex(4)]
        self._id, self._rounds = words[0], {int(word) for word in words[1:]}
        self.where = (
            "Weights & Biases: the figures of every round and the settings without paths go to its service, as "
            "WANDB_MODE=online asks"
            if online
            else f"Weights & Biases: {folder.path / 'wandb'}, on this machine; wandb sync would send it"
        )
        # What W&B would find out about the machine, the program and the account stays out.
        settings = wandb.Settings(
            mode="online" if online else "offline",
            root_dir=str(folder.path),
            project=os.environ.get("WANDB_PROJECT", "carefl-secure"),
            run_id=self._id,
            run_name=folder.name,
            resume="allow" if online else None,
            reinit="create_new",
            console="off",
            silent=True,
            save_code=False,
            disable_code=True,
            disable_git=True,
            host="",
            program="",
            init_timeout=20.0,
            finish_timeout=20.0,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=1.0,
        )
        with _failing():
            self._run = wandb.init(settings=settings, config=settings_of(folder))
        self._keep()

    def rounds(self) -> set[int]:
        """Return the rounds that were sent."""
        return self._rounds

    def record(self, row: Row) -> None:
        """Hand one round's numbers to W&B's own process, which writes them within a second."""
        step = int(row["round"])
        with _failing():
            self._run.log(figures_of(row), step=step)
        self._rounds.add(step)
        self._keep()

    def close(self, finished: bool) -> None:
        """Wait until everything is written or sent, and say how the run ended."""
        with _failing():
            self._run.finish(exit_code=0 if finished else 1)

    def _keep(self) -> None:
        write_atomically(self._kept, " ".join([self._id, *map(str, sorted(self._rounds))]).encode() + b"\n")


def open_tracker(folder: RunFolder) -> Tracker:
    """Open the run in Weights & Biases."""
    return _Run(folder)
