"""A client's correction under FedDyn, kept so that an interrupted run can be resumed."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ProtocolError, RunError
from carefl_secure.run_folder import make_folder, write_atomically

Vector = NDArray[np.float64]
_HEAD = struct.Struct("<8s32sqq")
_MAGIC = b"crfldyn1"


def client_file(folder: Path, kind: str, run: bytes, plan_hash: bytes, index: int) -> Path:
    """Return a client's file for something of one run: run, plan and client are hashed into ``kind`` at its ``{}``."""
    key = hashlib.sha256(run + plan_hash + struct.pack("<q", index)).hexdigest()
    return folder / kind.format(key[:32])


class Correction:
    r"""FedDyn's ``h_i``: the linear term of a client's local objective.

    After a round with released update ``delta``, :math:`h_i \leftarrow h_i - \alpha\,\delta`, from 0 (Acar et al.,
    ICLR 2021, arXiv 2111.04263, Algorithm 1, with the gradient of :math:`L_i` as :math:`h_i`). The value before the
    last round is kept as well: a round that was computed and then lost is not counted when the run is resumed, as the
    server never counted it. Where only the upload was lost the client cannot know, so the server's mean differs by
    that update.

    ``path`` is a file on the client's side, of mode 0600 and replaced atomically after every round; RunError when it
    is damaged or of another adapter. Without it only `save` keeps it.
    """

    def __init__(self, dimension: int, alpha: float, path: Path | None = None) -> None:
        self._alpha = alpha
        self._path = path
        self._number = 0
        self._before: Vector = np.zeros(dimension)
        self._after: Vector = np.zeros(dimension)
        if path is not None and path.exists():
            try:
                self.restore(path.read_bytes())
            except (OSError, ProtocolError) as error:
                raise RunError(
                    f"the client's FedDyn correction at {path} cannot be used: {error}; restore it "
                    "from a copy, or start a new run"
                ) from error

    def at(self, number: int) -> Vector:
        """Return ``h_i`` for round ``number``: as all rounds before it left it."""
        return (self._after if self._number < number else self._before).copy()

    def advance(self, number: int, delta: Vector) -> None:
        """Count what this client released in round ``number``, and keep it on disk."""
        before = self.at(number)
        self._before, self._after = before, before - self._alpha * delta
        self._number = number
        if self._path is not None:
            make_folder(self._path.parent)
            write_atomically(self._path, self.save(), private=True)

    def save(self) -> bytes:
        """Return the correction as bytes. They are as private as the client's records."""
        body = self._before.astype("<f8").tobytes() + self._after.astype("<f8").tobytes()
        digest = hashlib.sha256(body + struct.pack("<q", self._number)).digest()
        return _HEAD.pack(_MAGIC, digest, self._number, self._before.size) + body

    def restore(self, saved: bytes) -> None:
        """Go on from what `save` returned; ProtocolError when damaged or of another length."""
        size = self._before.size
        if len(saved) != _HEAD.size + 16 * size:
            raise ProtocolError("the saved FedDyn correction does not fit this adapter")
        magic, digest, number, count = _HEAD.unpack_from(saved)
        body = saved[_HEAD.size :]
        sound = hashlib.sha256(body + struct.pack("<q", number)).digest() == digest
        if magic != _MAGIC or count != size or not sound:
            raise ProtocolError("the saved FedDyn correction is damaged")
        values = np.frombuffer(body, "<f8").astype(np.float64)
        self._before, self._after, self._number = values[:size], values[size:], number
