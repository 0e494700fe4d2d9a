"""The one message that a key-additive round has of its own. EXPERIMENTAL."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.secagg.key_additive.cipher import CIPHER_BYTES, Ciphertext
from carefl_secure.secagg.key_additive.parameters import AdditiveParameters
from carefl_secure.secagg.key_additive.ring import RING_DEGREE
from carefl_secure.secagg.primitives.crypto import Buffer, words_digest
from carefl_secure.secagg.primitives.framing import exact, header, read_body

__all__ = ["KEY_BITS", "KEY_BYTES", "AdditiveKind", "AdditiveUpload"]

KEY_BITS = 32
"""Size of the words in which secrets are masked and added: a sum of 1000 has 17 bits."""

KEY_BYTES = KEY_BITS // 8 * RING_DEGREE
_SIGNATURE = 64


class AdditiveKind(IntEnum):
    """The type of message that a key-additive round has and the peers' has not."""

    UPLOAD = 40


@dataclass(frozen=True)
class AdditiveUpload:
    """Step 2: the client's key under the peers' masks, and its ciphertext; one signature for both.

    ``content`` is ``RING_DEGREE`` words of 32 bits and then the three planes of the ciphertext.
    """

    content: memoryview
    signature: bytes

    def digest(self) -> bytes:
        """Hash key and ciphertext together, so that neither goes without the other."""
        return words_digest(self.content)

    def encode(self, index: int, context: bytes) -> bytes:
        """Return the message."""
        return b"".join((header(AdditiveKind.UPLOAD, index, context), self.content, self.signature))

    @classmethod
    def parse(cls, message: Buffer, index: int, parameters: AdditiveParameters) -> AdditiveUpload:
        """Read the message of client ``index`` without copying what it holds."""
        kind = AdditiveKind.UPLOAD
        body = read_body(
            message, kind, index, count=parameters.clients, context=parameters.context()
        )
        size = KEY_BYTES + CIPHER_BYTES * RING_DEGREE * parameters.blocks
        exact(body, size + _SIGNATURE, kind)
        return cls(body[:size], bytes(body[size:]))

    def key(self) -> npt.NDArray[Any]:
        """Return the masked key as words."""
        return np.frombuffer(self.content[:KEY_BYTES], "<u4")

    def ciphertext(self) -> Ciphertext:
        """Return the ciphertext; any bytes are one."""
        return Ciphertext.decode(self.content[KEY_BYTES:])
