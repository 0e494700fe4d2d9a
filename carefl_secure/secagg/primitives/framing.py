"""One codec for all messages: a header, then fields without padding, read strictly."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from carefl_secure.noise import add_masks
from carefl_secure.secagg.primitives.agreement import Agreement
from carefl_secure.secagg.primitives.crypto import Buffer, refuse

_MAGIC = b"CFSA"
_VERSION = 2
_HEADER = struct.Struct("<4sBBH8s")
_U16 = struct.Struct("<H")

HEADER_BYTES = _HEADER.size
HASH_BYTES = 32
SIGNATURE_BYTES = 64


def words_digest(*words: Buffer) -> bytes:
    """Hash a long vector to 32 bytes (BLAKE2b, quicker than SHA-256 on long input)."""
    state = hashlib.blake2b(digest_size=32)
    for part in words:
        state.update(part)
    return state.digest()


def check_vector(vector: object, parameters: Agreement) -> None:
    """Refuse what is not a vector of the round's shape and type."""
    expected, shape = parameters.dtype, (parameters.dimension,)
    if not isinstance(vector, np.ndarray) or vector.dtype != expected or vector.shape != shape:
        raise refuse("vector shape", f"the vector must be {expected} of shape {shape}")


def masked_words(vector: npt.NDArray[Any], keys: Sequence[bytes], signs: Sequence[int]) -> memoryview:
    """Return a vector, which is not changed, with one signed mask per key, as little-endian words."""
    masked = vector.copy()
    add_masks(masked, keys, signs)
    return masked.astype(masked.dtype.newbyteorder("<"), copy=False).data.cast("B")


def header(kind: IntEnum, index: int, context: bytes) -> bytes:
    """Return the 16 bytes that a message starts with."""
    return _HEADER.pack(_MAGIC, _VERSION, kind, index, context[:8])


def sender(message: Buffer) -> int:
    """Return the claimed sender of any message, to route it; only the header's form is checked."""
    return _read_header(message)[2]


def _read_header(message: Buffer) -> tuple[memoryview, int, int, bytes]:
    if not isinstance(message, bytes | bytearray | memoryview):
        raise refuse("message type", f"a message is bytes, not {type(message).__name__}")
    view = memoryview(message)
    if view.ndim != 1 or view.itemsize != 1 or not view.contiguous:
        raise refuse("message type", "a message is a flat run of bytes")
    if len(view) < HEADER_BYTES:
        raise refuse("message length", f"{len(view)} bytes do not hold a header")
    magic, version, kind, index, prefix = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise refuse("message magic", "this is not a message of the secure sum")
    if version != _VERSION:
        raise refuse("message version", f"version {version}, this program speaks {_VERSION}")
    return view, kind, index, prefix


class Body:
    """The fields of a message, taken from front to back; a field that is cut short is refused."""

    def __init__(self, view: memoryview, kind: IntEnum) -> None:
        self._view = view
        self._kind = kind.name.lower()

    def __len__(self) -> int:
        return len(self._view)

    def view(self, size: int) -> memoryview:
        """Take the next bytes without copying them."""
        if size > len(self._view):
            raise refuse("message length", f"{self._kind} ends {size - len(self)} bytes too soon")
        taken, self._view = self._view[:size], self._view[size:]
        return taken

    def take(self, size: int) -> bytes:
        """Take the next bytes."""
        return bytes(self.view(size))

    def pieces(self, count: int, size: int) -> tuple[bytes, ...]:
        """Take so many fields of one length."""
        raw = self.view(count * size)
        return tuple(bytes(raw[at : at + size]) for at in range(0, len(raw), size))

    def number(self) -> int:
        """Take an integer of two bytes."""
        (value,) = _U16.unpack(self.view(_U16.size))
        return int(value)

    def words(self, shape: Any) -> memoryview:
        """Take a vector of words without copying it."""
        return self.view(shape.dimension * shape.bits // 8)

    def indices(self, limit: int, what: str) -> tuple[int, ...]:
        """Take a count and so many ascending indices below ``limit``."""
        found = tuple(index for (index,) in _U16.iter_unpack(self.view(2 * self.number())))
        ascending = all(one < other for one, other in itertools.pairwise(found))
        if not ascending or any(index >= limit for index in found):
            raise refuse(what, "an index repeats, is out of order or unknown")
        return found

    def expect(self, size: int) -> None:
        """Refuse a rest of any other length."""
        if len(self) != size:
            raise refuse("message length", f"{self._kind} has {len(self)} bytes left where {size} are due")


class Field(NamedTuple):
    """How one field of a message is written, as buffers, and taken from a body again."""

    write: Callable[[Any], Iterable[Buffer]]
    read: Callable[[Body, Any], Any]


def octets(size: int) -> Field:
    """Return a field of so many bytes."""
    return Field(lambda value: (value,), lambda body, shape: body.take(size))


def indices(what: str, limit: Callable[[Any], int]) -> Field:
    """Return a field of ascending indices below a limit that follows from the shape."""

    def write(value: Collection[int]) -> Iterable[Buffer]:
        return (_U16.pack(index) for index in (len(value), *sorted(value)))

    return Field(write, lambda body, shape: body.indices(limit(shape), what))


HASH = octets(HASH_BYTES)
SIGNATURE = octets(SIGNATURE_BYTES)
NUMBER = Field(lambda value: (_U16.pack(value),), lambda body, shape: body.number())
WORDS = Field(lambda value: (value,), lambda body, shape: body.words(shape))
"""A vector of words, read without copying it."""


class Message:
    """A message, as a dataclass whose class is given its type and the codec of each field in order.

    An ``early`` one is sent before the model is bound, under the key context. ``PARTY`` says who sends it.
    """

    KIND: ClassVar[IntEnum]
    FIELDS: ClassVar[tuple[Field, ...]]
    PARTY: ClassVar[str] = "client"
    BEFORE_MODEL: ClassVar[bool] = False

    def __init_subclass__(
        cls, kind: IntEnum | None = None, fields: tuple[Field, ...] = (), early: bool = False
    ) -> None:
        super().__init_subclass__()
        if kind is not None:
            cls.KIND, cls.FIELDS, cls.BEFORE_MODEL = kind, fields, early

    @classmethod
    def senders(cls, shape: Any) -> int:
        """Return how many parties can send it."""
        return int(shape.clients)

    def encode(self, index: int, context: bytes) -> bytes:
        """Return the message of party ``index`` in the round of a context."""
        return b"".join((header(self.KIND, index, context), *self._written()))

    def content(self) -> bytes:
        """Return the fields before the last one, the signature, as bytes."""
        return b"".join(self._written()[:-1])

    def digest(self) -> bytes:
        """Hash the fields before the last one, the signature, without joining them."""
        return words_digest(*self._written()[:-1])

    def signed(self, signature: bytes) -> Self:
        """Return the message with another value of its field ``signature``."""
        return dataclasses.replace(self, signature=signature)  # type: ignore[type-var]

    def _written(self) -> list[Buffer]:
        pairs = zip(self.FIELDS, vars(self).values(), strict=True)
        return [buffer for spec, value in pairs for buffer in spec.write(value)]

    def vector(self, shape: Any) -> npt.NDArray[Any]:
        """Return the field ``words`` as a read-only vector over the message's own bytes."""
        words: memoryview = self.words  # type: ignore[attr-defined]
        return np.frombuffer(words, np.dtype(f"<u{shape.bits // 8}"))

    @classmethod
    def parse(cls, message: Buffer, index: int, parameters: Agreement) -> Self:
        """Read the message that came from party ``index``; refuse a wrong layout or header."""
        context = parameters.key_context() if cls.BEFORE_MODEL else parameters.context()
        view, kind, claimed, prefix = _read_header(message)
        if kind != cls.KIND:
            due = f"{cls.KIND.name.lower()} ({cls.KIND.value})"
            raise refuse("message kind", f"type {kind} where {due} is due")
        if claimed != index:
            raise refuse("message sender", f"it names {cls.PARTY} {claimed}, but came as {cls.PARTY} {index}")
        if not 0 <= claimed < cls.senders(parameters):
            raise refuse("message sender", f"{cls.PARTY} {claimed} is not in the roster")
        if prefix != context[:8]:
            raise refuse("message context", f"{cls.PARTY} {index} is in another round, or agreed otherwise")
        return cls._read(view, parameters)

    @classmethod
    def decode(cls, message: Buffer, shape: Any) -> Self:
        """Read a message of this type from any round and sender, for observers."""
        view, kind, _, _ = _read_header(message)
        if kind != cls.KIND:
            raise refuse("message kind", f"type {kind} is not {cls.KIND.name.lower()}")
        return cls._read(view, shape)

    @classmethod
    def _read(cls, view: memoryview, shape: Any) -> Self:
        body = Body(view[HEADER_BYTES:], cls.KIND)
        read = cls(*(spec.read(body, shape) for spec in cls.FIELDS))
        body.expect(0)
        return read
