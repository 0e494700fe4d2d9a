"""Vision features on the client's disk: made once per image, read for the records in use only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carefl_secure.errors import DataError
from carefl_secure.model.vision.shards import HEADER, KEY, encoder_folder, header_of
from carefl_secure.progress import SILENT, Reporter

_SHARD_BYTES = 1 << 28
_SHARD_SECONDS = 300.0  # what a crash may lose
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_Rows = slice | Tensor | npt.NDArray[np.int64]


class Features(Protocol):
    """Vision features of records, [records, tokens, width]: a Tensor, or rows on disk."""

    def __len__(self) -> int:
        """Return the number of records."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the features of some records in memory: a Tensor, or `Tiles` of images that are cut."""


class _Shard(Protocol):
    def read(self, rows: Sequence[int], out: Tensor) -> None: ...


class _InMemory:
    def __init__(self, features: Tensor) -> None:
        self._features = features

    def read(self, rows: Sequence[int], out: Tensor) -> None:
        out.copy_(self._features[list(rows)])


class _OnDisk:
    """One file; it is kept open, so that its rows can be read though it is erased meanwhile."""

    def __init__(self, path: Path, row_bytes: int) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._row_bytes = row_bytes

    def read(self, rows: Sequence[int], out: Tensor) -> None:
        # Not by memory map: mapped pages count as resident memory of the process.
        flat = out.view(torch.uint8).reshape(len(rows), -1).numpy()
        for place, row in enumerate(rows):
            offset = HEADER + row * self._row_bytes
            if os.preadv(self._file, [flat[place]], offset) != self._row_bytes:
                raise DataError("a file of vision features became shorter while it was read; run again")


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """Features of some images in a store, [records, tokens, width]; indexing reads those rows."""

    shards: Sequence[_Shard]
    where: npt.NDArray[np.int64]  # int64 [records, 2]: shard and row of each record
    shape: tuple[int, int]
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, rows: _Rows, /) -> Tensor:
        """Read the features of some records."""
        where = self.where[rows.numpy() if isinstance(rows, Tensor) else rows]
        out = torch.empty(len(where), *self.shape, dtype=self.dtype)
        for shard in np.unique(where[:, 0]).tolist():
            places = np.flatnonzero(where[:, 0] == shard)
            part = torch.empty(len(places), *self.shape, dtype=self.dtype)
            self.shards[shard].read(where[places, 1].tolist(), part)
            out[torch.from_numpy(places)] = part
        return out

    def select(self, rows: npt.NDArray[np.int64]) -> StoredFeatures:
        """Return some of the records, without reading them."""
        return StoredFeatures(self.shards, self.where[rows], self.shape, self.dtype)


class FeatureStore:
    """The features of one encoder, by the SHA-256 of the image; in memory where there is no folder.

    ``facts`` decide features besides the image: base digest, compute type, processor settings. Of
    the device nothing is said, so features of one device serve another, equal up to rounding.

    Guarantees
    ----------
    A file whose content is not what its name says (SHA-256) is not used: it is erased, and the
    images are encoded again. A file appears under its name when it is complete, so that of a crash
    nothing is read. Folders are 0700, files 0600. Assumes a disk that only this user writes to
    while a run has its files open.
    """

    def __init__(
        self, root: Path | None, facts: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self.root = root
        self.shape, self.dtype = shape, dtype
        self.row_bytes = shape[0] * shape[1] * dtype.itemsize
        self._facts = dict(facts)
        self._folder: Path | None = None
        self._shards: list[_Shard] = []
        self._index: dict[bytes, tuple[int, int]] = {}
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def empty(self) -> FeatureStore:
        """Return another store of the same encoder, in memory, that holds nothing."""
        return FeatureStore(None, self._facts, self.shape, self.dtype)

    def refresh(self, reporter: Reporter) -> None:
        """Take up what this or another process has completed since; check every file first."""
        if self.root is None:
            return
        self._folder = encoder_folder(self.root, self._facts)
        for path in sorted(self._folder.glob("*.safetensors")):
            if path.name not in self._names:
                self._take(path, reporter)

    def _take(self, path: Path, reporter: Reporter) -> None:
        try:
            header = header_of(path)
            with path.open("rb") as file:
                sound = header is not None and hashlib.file_digest(file, "sha256").hexdigest() == path.stem
            fits = header is not None and header["features"]["shape"][1:] == list(self.shape)
            if header is None or not (sound and fits and header["features"]["dtype"] == _NAMES[self.dtype]):
                reporter.note(f"the file of vision features {path} is damaged: erased, its images are encoded again")
                path.unlink(missing_ok=True)
                return
            with path.open("rb") as file:
                file.seek(HEADER + header["keys"]["data_offsets"][0])
                keys = file.read()
            shard = _OnDisk(path, self.row_bytes)
        except FileNotFoundError:
            return  # erased by another process meanwhile
        except OSError as error:
            raise DataError(f"cannot read the vision features in {path}: {error.strerror}") from error
        self._names.add(path.name)
        self._append(shard, [keys[i : i + KEY] for i in range(0, len(keys), KEY)])

    def _append(self, shard: _Shard, keys: Sequence[bytes]) -> None:
        with self._lock:
            self._shards.append(shard)
            for row, key in enumerate(keys):
                self._index.setdefault(key, (len(self._shards) - 1, row))

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def features(self, keys: Sequence[bytes]) -> StoredFeatures:
        """Return the features of images that are in the store."""
        where = np.array([self._index[key] for key in keys], np.int64).reshape(-1, 2)
        return StoredFeatures(self._shards, where, self.shape, self.dtype)

    @contextlib.contextmanager
    def writing(self) -> Iterator[_Writer]:
        """Yield what takes further features; what it took is in the store at the end, also of a stop."""
        writer = _Writer(self)
        try:
            yield writer
        finally:
            writer.close()


class _Writer:
    """Writes features as they come: memory holds one batch, a crash loses five minutes."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._keys: list[bytes] = []
        self._taken: set[bytes] = set()
        self._file: IO[bytes] | None = None
        self._part = ""
        self._started = 0.0

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Add features [n, tokens, width] of images by their keys; known ones are left out."""
        fresh = [i for i, key in enumerate(keys) if key not in self._store and key not in self._taken]
        if not fresh:
            return
        rows, names = features[fresh].to(self._store.dtype).contiguous(), [keys[i] for i in fresh]
        if self._store._folder is None:
            # A copy made outside inference mode may take part in autograd later.
            self._store._append(_InMemory(rows.clone()), names)
            return
        try:
            if self._file is None:
                handle, self._part = tempfile.mkstemp(dir=self._store._folder, suffix=".part")  # 0600
                self._file = os.fdopen(handle, "wb")
                self._file.write(b" " * HEADER)
                self._started = time.monotonic()
            self._file.write(rows.view(torch.uint8).reshape(-1).numpy().data)
        except OSError as error:
            raise self._full(error) from error
        self._keys += names
        self._taken.update(names)
        full = len(self._keys) * self._store.row_bytes >= _SHARD_BYTES
        if full or time.monotonic() - self._started > _SHARD_SECONDS:
            self.close()

    def close(self) -> None:
        """Complete the file: keys, header, name."""
        if self._file is None:
            return
        file, keys, store = self._file, self._keys, self._store
        self._file, self._keys, self._taken = None, [], set()
        assert store._folder is not None
        end = len(keys) * store.row_bytes
        part = Path(self._part)
        head = {
            "features": {"dtype": _NAMES[store.dtype], "shape": [len(keys), *store.shape], "data_offsets": [0, end]},
            "keys": {"dtype": "U8", "shape": [len(keys), KEY], "data_offsets": [end, end + KEY * len(keys)]},
        }
        try:
            with file:
                file.write(b"".join(keys))
                file.seek(0)
                file.write((HEADER - 8).to_bytes(8, "little") + json.dumps(head).encode().ljust(HEADER - 8))
            with part.open("rb") as written:
                path = store._folder / f"{hashlib.file_digest(written, 'sha256').hexdigest()}.safetensors"
            shard = _OnDisk(part, store.row_bytes)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._full(error) from error
        store._names.add(path.name)
        store._append(shard, keys)

    def _full(self, error: OSError) -> DataError:
        return DataError(
            f"cannot keep vision features in {self._store.root}: {error.strerror}; free some space, see "
            "'carefl-secure cache list', or set model.feature_cache to another folder"
        )


def note_size(
    store: FeatureStore, images: int, reporter: Reporter = SILENT, *, tiles: int = 1, what: str = "vision features"
) -> None:
    """Say what will be written at most; `DataError` where the disk has no room for it."""
    if store._folder is None:
        return
    size, free = images * tiles * store.row_bytes, shutil.disk_usage(store._folder).free
    reporter.note(
        f"{what} of up to {images} images, {size / 1e6:,.1f} MB, go to {store._folder}; they stay on this "
        "machine: see 'carefl-secure cache'"
    )
    if size > free:
        raise DataError(
            f"the {what} of {images} images need up to {size / 1e9:.1f} GB, and {store._folder} has "
            f"{free / 1e9:.1f} GB free; free some space, or set model.feature_cache to another folder"
        )
