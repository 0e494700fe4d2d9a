"""Runs the cells of an experiment, each in a folder of its own, and resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import carefl_secure
from carefl_secure.config import dump_config
from carefl_secure.config.experiment import Cell
from carefl_secure.errors import CareflError, RunError
from carefl_secure.experiment.scores import Bench, train_centrally, train_locally
from carefl_secure.model.saved import load_saved
from carefl_secure.privacy import Ledger
from carefl_secure.progress import SILENT, Reporter, tracked
from carefl_secure.run_folder import RunFolder, make_folder, write_atomically
from carefl_secure.runs.train import train
from carefl_secure.strict_json import load_json

_CELL = "cell.json"  # written last: a cell with this file is finished
_SCORES = "scores.npz"
# A fault of the program in one cell is named in the table, as it would be in a process of its own.
_FAULTS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Finished:
    """The outcome of one cell."""

    variant: str
    seed: int
    epsilon: float | None  # what the training spent; None where nothing is protected
    seconds: float  # of wall time, scoring included
    figures: dict[str, float]  # see Scores.statistic; empty where the cell failed
    error: str | None = None  # why it failed


def run_cell(cell: Cell, reporter: Reporter) -> Finished:
    """Run one cell, or read it where it is finished.

    An interrupted federated run resumes after its last finished round; without one it begins anew, and the old folder,
    with its ledgers, is kept. A finished cell with other settings raises `RunError`.
    """
    folder = cell.config.run.dir / cell.name
    known = _read(folder / _CELL)
    if known is not None:
        if known["settings"] != _settings(cell):
            raise RunError(
                f"{folder} holds a cell with other settings or of another version; remove it, or "
                "give the experiment another name"
            )
        return Finished(**known["result"])
    started = time.monotonic()
    _MAKERS[cell.variant.kind](cell, folder, reporter)
    made = _read(folder / "made.json") or {}
    # An earlier attempt's time is in it only where the run could not go on.
    result = Finished(cell.variant.name, cell.seed, made.get("epsilon"), time.monotonic() - started, made["figures"])
    cell_json = {"settings": _settings(cell), "result": asdict(result)}
    write_atomically(folder / _CELL, (json.dumps(cell_json, indent=2) + "\n").encode())
    return result


def _settings(cell: Cell) -> str:
    """Hash all that decides a cell's result, but not where it lies."""
    parts = [f"{carefl_secure.__version__} {cell.variant.kind}"]
    for config in (cell.config, cell.scored):
        run = config.run.model_copy(update={"dir": Path(), "name": None})
        data = config.data.model_copy(update={"cache_dir": None})
        parts.append(dump_config(config.model_copy(update={"run": run, "data": data})))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = load_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}; remove its folder") from error
    return found


def _keep(folder: Path, bench: Bench, scored: list[tuple[Any, Any]], epsilon: float | None) -> None:
    held = bench.held(scored)
    held.write(folder / _SCORES)
    figures = {k: v for k, v in held.statistic()(None).items() if math.isfinite(v)}
    text = json.dumps({"epsilon": epsilon, "figures": figures})
    write_atomically(folder / "made.json", text.encode())


def _federated(cell: Cell, folder: Path, reporter: Reporter) -> None:
    config, resume = cell.config, None
    if (folder / "checkpoint" / "state.npz").is_file():
        resume = folder
    elif folder.exists():
        _set_aside(folder)
    adapter = folder / "adapter" / "adapter_model.safetensors"
    if resume is None or not adapter.is_file():
        train(config, reporter, resume)
    kept = RunFolder.open(folder)
    spent = None
    if config.privacy.unit != "none":  # the ledger also holds rounds that were paid for and lost
        spent = Ledger(kept.ledger).epsilon(config.privacy.delta)
    bench = Bench(cell.scored, reporter)
    load_saved(bench.scorer.adapter, kept.adapter)
    _keep(folder, bench, [bench.score()], spent)


def _set_aside(folder: Path) -> None:
    for number in range(1, 1000):
        place = folder.with_name(f"{folder.name}.stopped-{number}")
        if not place.exists():
            folder.rename(place)
            return
    raise RunError(f"{folder} was stopped before its first round a thousand times; look there")


def _alone(work: Callable[[Bench], tuple[list[Any], float | None]]) -> Callable[..., None]:
    """Return the maker of a cell that needs no federation; an interrupted one begins anew."""

    def make(cell: Cell, folder: Path, reporter: Reporter) -> None:
        make_folder(folder)
        write_atomically(folder / "config.yaml", dump_config(cell.config).encode())
        trained = Bench(cell.config, reporter)
        vectors, epsilon = work(trained)
        bench = trained if cell.scored is cell.config else Bench(cell.scored, reporter)
        scored = []
        for vector in vectors:
            bench.scorer.adapter.load(vector)
            scored.append(bench.score())
        _keep(folder, bench, scored, epsilon)

    return make


_MAKERS: dict[str, Callable[[Cell, Path, Reporter], None]] = {
    "train": _federated,
    "zero-shot": _alone(lambda bench: ([bench.scorer.adapter.untuned()], 0.0)),  # nothing private was looked at
    "local": _alone(lambda bench: (train_locally(bench), None)),
    "central": _alone(train_centrally),
}


def run_cells(cells: list[Cell], jobs: int, reporter: Reporter) -> list[Finished]:
    """Run all cells in ``jobs`` processes, one in this; return their outcomes in order, failures included."""
    found: dict[str, Finished] = {}
    for name, done in tracked(_here(cells) if jobs == 1 else _beside(cells, jobs), reporter, "cells", len(cells)):
        found[name] = done
        reporter.note(_line(name, done))
    return [found[cell.name] for cell in cells]


def _line(name: str, done: Finished) -> str:
    if done.error is not None:
        return f"{name}: FAILED: {done.error}"
    figures = "  ".join(f"{key} {value:.3f}" for key, value in done.figures.items())
    return f"{name}: {figures}  ({done.seconds:.0f} s)"


def _failed(cell: Cell, error: BaseException) -> Finished:
    # An error that nobody foresaw is named by its class.
    text = str(error) if isinstance(error, CareflError) else f"{type(error).__name__}: {error}"
    return Finished(cell.variant.name, cell.seed, None, 0.0, {}, text)


def _here(cells: list[Cell]) -> Iterator[tuple[str, Finished]]:
    for cell in cells:
        try:
            yield cell.name, run_cell(cell, SILENT)
        except (CareflError, *_FAULTS) as error:
            yield cell.name, _failed(cell, error)


def _beside(cells: list[Cell], jobs: int) -> Iterator[tuple[str, Finished]]:
    """Yield cells as they end, from processes that start afresh and share the cores."""
    share = max(1, (os.cpu_count() or 1) // jobs)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = before or str(share)
    try:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting: dict[Future[Finished], Cell] = {pool.submit(run_cell, cell, SILENT): cell for cell in cells}
            for future in as_completed(waiting):
                cell, error = waiting[future], future.exception()
                yield cell.name, future.result() if error is None else _failed(cell, error)
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]


def scores_file(folder: Path, variant: str, seed: int) -> Path:
    """Return where a cell's scores lie."""
    return folder / f"{variant}-seed{seed}" / _SCORES
