"""A run's folder; every file is replaced atomically, so a crash leaves the old one or the new one.

Layout: ``config.yaml``, ``ledger.jsonl``, ``metrics.jsonl``, ``adapter/``,
``checkpoint/state.npz``, ``clients/<i>/ledger.jsonl``.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import secrets
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import RunError
from carefl_secure.strict_json import load_json

Scalar = int | float | str
State = Mapping[str, NDArray[np.generic] | Scalar]
Row = Mapping[str, Scalar]


def new_run_id() -> str:
    """Return UTC time and eight random hexadecimal digits: ``20261120T081500Z-1f2e3d4c``."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def write_atomically(path: Path, content: bytes, *, private: bool = False) -> None:
    """Replace a file in one step: write a new one, flush to disk, rename, flush the directory.

    ``private``: only the owner may read it, mode 0600 from the first byte on. RunError is raised
    where the file system refuses.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            mode = 0o600 if private else 0o666
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(beside, flags, mode), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; free some space or check the permissions") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where there is none; RunError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {path}: {error.strerror}") from error


class RunFolder:
    """One run's folder; use `create` for a new run and `open` for an old one.

    ``stage``, such as ``2-compound``, is the stage worked on in a run with several.
    """

    def __init__(self, path: Path, stage: str = "") -> None:
        self.stage = stage
        self.path = path = Path(path)
        self.config = path / "config.yaml"
        self.ledger = path / "ledger.jsonl"  # the server's
        self.metrics = path / "metrics.jsonl"  # one JSON object per finished round
        self.adapter = path / "adapter"
        self.checkpoint = path / "checkpoint" / "state.npz"  # after the last finished round
        self.plan = path / "plan.json"  # privacy, encoding and the event of one round
        self.events = path / "logs" / "server.jsonl"  # what the server saw, as JSON objects
        self.keys = path / "keys"  # which predictable keys were drawn, in a test with those

    @classmethod
    def create(cls, root: Path, config: str, run_id: str | None = None) -> RunFolder:
        """Make ``root/<run id>`` and write ``config``, the whole configuration as YAML text.

        RunError is raised if a run of this name exists or the folder cannot be made.
        """
        folder = cls(Path(root) / (run_id or new_run_id()))
        try:
            folder.path.mkdir(parents=True)
            folder.adapter.mkdir()
            folder.checkpoint.parent.mkdir()
        except FileExistsError as error:
            raise RunError(f"there is already a run at {folder.path}; resume it or choose another name") from error
        except OSError as error:
            raise RunError(f"cannot make the run folder {folder.path}: {error.strerror}") from error
        write_atomically(folder.config, config.encode())
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return the folder of an earlier run; RunError where it holds no ``config.yaml``."""
        folder = cls(path)
        if not folder.config.is_file():
            raise RunError(f"{path} is not a run folder: it holds no config.yaml")
        return folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other command from going on with the run; RunError where one is on it.

        Two would charge the same rounds twice. The system frees the lock when the process ends, however it does.
        """
        with (self.path / ".lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"another command is training {self.path}; wait for it to end") from error
            yield

    @property
    def finished(self) -> bool:
        """Whether the run ended: its trained weights are there."""
        return (self.adapter / "adapter_model.safetensors").is_file()

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def run_id(self) -> str:
        """Name of the run, with that of the stage: ``name/2-compound``.

        Rounds are agreed on and paid for under this name, so no two stages share a context; a run's
        own name holds no slash.
        """
        return f"{self.name}/{self.stage}" if self.stage else self.name

    def client(self, index: int) -> Path:
        """Folder of one simulated client."""
        return self.path / "clients" / str(index)

    def helper(self, index: int) -> Path:
        """Folder of one simulated helper."""
        return self.path / "helpers" / str(index)

    def client_ledger(self, index: int) -> Path:
        """Ledger of one simulated client."""
        return self.client(index) / "ledger.jsonl"

    def read_events(self) -> list[dict[str, Any]]:
        """Return the lines of the server's log, oldest first; one that is torn is passed over."""
        if not self.events.exists():
            return []
        lines = map(_object, self.events.read_text("utf-8", errors="replace").splitlines())
        return [line for line in lines if line is not None]

    def append_metrics(self, row: Row) -> None:
        """Add one round's figures; RunError for NaN or infinity, which JSON cannot hold.

        The whole file is replaced, so a reader never sees half a line.
        """
        self._write_rows([*self.read_metrics(), row])

    def read_metrics(self) -> list[dict[str, Scalar]]:
        """Return the figures of all finished rounds, oldest first.

        A line that a power cut left torn is passed over: checkpoint and ledgers hold the round.
        """
        try:
            text = self.metrics.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"cannot read {self.metrics}: {error.strerror}; make it readable") from error
        rows = map(_object, text.split("\n"))
        return [row for row in rows if row is not None and isinstance(row.get("round"), int)]

    def keep_metrics(self, last_round: int) -> None:
        """Drop the figures of rounds after ``last_round``, whose checkpoint was never written."""
        if self.metrics.exists():
            rows = self.read_metrics()
            self._write_rows([row for row in rows if int(row["round"]) <= last_round])

    def read_plan(self) -> dict[str, Any]:
        """Return the plan as JSON; RunError where the file is missing or holds no JSON object."""
        try:
            plan = load_json(self.plan.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.plan} cannot be read as JSON: {error}; resume the run") from error
        if not isinstance(plan, dict):
            raise RunError(f"{self.plan} does not hold a JSON object; restore it from a copy")
        return plan

    def write_checkpoint(self, state: State) -> None:
        """Replace the checkpoint; RunError for a value that is not a number, a text or an array."""
        arrays = {name: np.asarray(value) for name, value in state.items()}
        for name, array in arrays.items():
            if array.dtype.kind not in "biufU":
                raise RunError(f"checkpoint entry {name!r} is not a number, a text, or an array")
        self.checkpoint.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(self.checkpoint, buffer.getvalue())

    def read_checkpoint(self) -> dict[str, NDArray[np.generic] | Scalar]:
        """Return what `write_checkpoint` stored; arrays without axes come back as Python scalars.

        RunError is raised if there is no checkpoint or it is damaged.
        """
        if not self.checkpoint.is_file():
            raise RunError(f"{self.path} holds no checkpoint: no round was finished; start the run again")
        try:
            with self.checkpoint.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                loaded = {name: file[name] for name in file.files}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise RunError(f"the checkpoint {self.checkpoint} is damaged; restore it from a copy") from error
        return {name: array if array.ndim else array.item() for name, array in loaded.items()}

    def _write_rows(self, rows: list[dict[str, Scalar]] | list[Row]) -> None:
        for row in rows:
            for name, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise RunError(f"figure {name!r} of round {row['round']} is {value}; leave it out")
        lines = [json.dumps(dict(row), sort_keys=True) + "\n" for row in rows]
        write_atomically(self.metrics, "".join(lines).encode())


def require_writable(path: Path) -> None:
    """Refuse, with a RunError, a folder that cannot be written, or made; nothing stays behind."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        raise RunError(
            f"cannot write to {path}: {error.strerror}; choose another folder (run.dir), or change its permissions"
        ) from error


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; not an error.

    ``folder`` holds what was finished, ``resumable`` says whether a round was, and ``again`` is the
    command that goes on with it.
    """

    def __init__(self, folder: Path, *, resumable: bool) -> None:
        super().__init__(str(folder))
        self.folder, self.resumable = folder, resumable
        self.again = f"carefl-secure train --resume {folder}"

    def __str__(self) -> str:
        """Say where the run is, and how to go on with it."""
        if not self.resumable:
            return (
                f"no round was finished in {self.folder}, so there is nothing to resume; what "
                "was charged stays in the ledgers"
            )
        return f"the run folder is {self.folder}; go on with: {self.again}"


def check_start(path: Path, *, resume: bool) -> None:
    """Refuse (RunError) to resume a finished run, or to begin one on top of another.

    Called before anything is read or encoded; the folder must be writable, too.
    """
    if not resume and path.exists():
        raise RunError(f"there is already a run at {path}; resume it or choose another name")
    if resume and RunFolder.open(path).finished:
        raise RunError(
            f"{path} is finished: its adapter is saved, so there is nothing to resume; "
            "use carefl-secure evaluate or report, or start another run"
        )
    require_writable(path if resume else path.parent)


def _object(line: str) -> dict[str, Any] | None:
    """Return the JSON object of a line; None for a line that is empty or torn."""
    try:
        found = load_json(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
