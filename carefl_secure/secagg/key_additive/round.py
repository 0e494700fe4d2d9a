"""The key-additive round: every client under its own key, opened by the sum of the keys.

EXPERIMENTAL: hand-made lattice cryptography that nobody has reviewed. Use the default (masks among
the peers) or the encrypted mode on BFV for anything that matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import KeyStream, add_masks
from carefl_secure.secagg.encoding.quantize import wrap
from carefl_secure.secagg.key_additive.cipher import CipherSum, encrypt, open_sum
from carefl_secure.secagg.key_additive.messages import AdditiveUpload
from carefl_secure.secagg.key_additive.parameters import AdditiveParameters
from carefl_secure.secagg.key_additive.ring import RING_DEGREE, SMALL_BOUND, draw_small
from carefl_secure.secagg.pairwise.client import PairwiseClient
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.pairwise.server import PairwiseServer
from carefl_secure.secagg.pairwise.state import Phase
from carefl_secure.secagg.primitives.checks import refuse

__all__ = ["AdditiveClient", "AdditiveServer"]


def _additive(parameters: RoundParameters) -> AdditiveParameters:
    if not isinstance(parameters, AdditiveParameters):
        raise refuse("parameters", "a key-additive round needs AdditiveParameters")
    return parameters


class AdditiveClient(PairwiseClient):
    """A client of a key-additive round: ``PairwiseClient`` whose masks cover its key. EXPERIMENTAL.

    The upload holds ``s + PRG(b_i) + sum_j +-PRG(k_ij)`` modulo ``2**32``, over the 4096
    coefficients of a secret ``s`` that is drawn for this one upload, and the ciphertext ``floor((a
    s + e + Delta pack(x) + 8) / 16)``. Everything else is the peer protocol.

    Guarantees
    ----------
    *Rests on proven ground.* Who may learn the sum of the keys, over which clients, and that it is
    one sum only, is exactly what ``PairwiseClient`` says of its vector: the key is that vector.
    Key and ciphertext are under one signature, so both sums are over the clients that the
    survivors signed.

    *Rests on an assumption.* Beside the sum of the keys the server sees every ciphertext. That
    those then tell no more than the sum of the vectors is ring learning with errors *with a hint*:
    the sums of the honest clients' secrets and of their errors are known. For discrete Gaussians
    such a hint is known to reduce to plain RLWE of a smaller width (Hint-MLWE: Kim, Lee, Seo and
    Song, CRYPTO 2023), and the same idea carries Willow (Bell-Clark, Gascon, Li, Raykova and
    Schoppmann, CRYPTO 2025). Ours are centred binomials: given the sum over ``h`` honest clients
    the coefficients of one are hypergeometric with variance ``21 (h - 1) / h``, at least 10.5 for
    two or more. *That this is as hard as RLWE of standard deviation 3.2 is our reading, and is not
    proven.* At that width the standard's table gives 128 bits (see ``additive_ring``).

    *Not given.* Nothing is proven about a ciphertext: a client can send any. Neither code nor
    argument has been reviewed, the floating-point transforms are not constant-time, and there may
    be patents on like schemes.
    """

    def mask(self, vector: npt.NDArray[Any], shares: Mapping[int, bytes]) -> bytes:
        """Step 2: as ``PairwiseClient.mask``, for a vector under a key of its own.

        Parameters
        ----------
        vector
            Shape ``[dimension]``, uint16 or uint32 as agreed, read as signed; no magnitude above
            ``value_bound``.
        shares
            The message of every neighbour that shared, by index.
        """
        self._due(Phase.SHARED, "mask")
        parameters = _additive(self._parameters)
        self._check_vector(vector)
        signed = vector.view(f"i{vector.dtype.itemsize}").astype(np.int64)
        if int(np.abs(signed).max()) > parameters.value_bound:
            raise refuse(
                "value bound",
                f"an integer is larger than the agreed {parameters.value_bound}; sums could"
                " overflow, so nothing was sent",
            )
        held, masks, signs = self._open_shares(shares)
        secret = draw_small(KeyStream(self._keys.key("additive key")))[0]
        noise = KeyStream(self._keys.key("additive noise"))
        sealed = encrypt(signed, secret, noise, parameters, self._state.beacon)
        key = (secret & 0xFFFFFFFF).astype(np.uint32)
        add_masks(key, masks, signs)
        secret[:] = 0
        content = memoryview(key.astype("<u4", copy=False).tobytes() + sealed.encode())
        upload = AdditiveUpload(content, b"")
        signature = self._sign_upload(upload.digest())
        self._uploaded(held)
        return AdditiveUpload(content, signature).encode(self.index, self._context)


class AdditiveServer(PairwiseServer):
    """The server of a key-additive round: adds ciphertexts and masked keys. EXPERIMENTAL.

    Guarantees
    ----------
    As ``PairwiseServer``. ``finish`` returns the exact sum over the survivors, or raises: a sum
    of keys over other clients than those of the ciphertexts, or of another round, leaves noise
    that is uniform instead of small, and is refused.
    """

    def __init__(self, parameters: AdditiveParameters) -> None:
        super().__init__(parameters)
        self._ciphers: CipherSum | None = CipherSum(parameters.blocks)
        self._key_sum = np.zeros(RING_DEGREE, np.uint32)

    def uploaded(self, index: int, message: bytes) -> None:
        """Check a client's key and ciphertext and add them; the message is not kept."""
        self._accepts_upload(index)
        upload = AdditiveUpload.parse(message, index, _additive(self._parameters))
        self._verify_upload(index, upload.digest(), upload.signature)
        if self._ciphers is None:
            raise refuse("step order", "the round has given its sum, or failed")
        self._key_sum += upload.key()
        self._ciphers.add(upload.ciphertext())
        self._uploaded.add(index)

    def _fail(self) -> None:
        super()._fail()
        self._ciphers = None

    def finish(self) -> npt.NDArray[Any]:
        """Open the sum of the keys, then the sum, shape ``[dimension]``, as words; once.

        Raises
        ------
        ProtocolError
            ``rebuilt secret`` as ``PairwiseServer``; ``key sum`` if it is no sum of so many
            secrets; ``noise`` if it does not open the sum of the ciphertexts; ``field overflow``
            if what came out is no sum. The round is over then.
        CohortError
            As ``PairwiseServer``.
        """
        parameters = _additive(self._parameters)
        keys, signs = self._masks()
        ciphers, self._ciphers = self._ciphers, None
        if ciphers is None:
            raise refuse("step order", "the sum was handed out before")
        words = self._key_sum
        add_masks(words, keys, signs)
        count = len(self._uploaded)
        try:
            integers = self._opened(ciphers, words, count, parameters)
        except ProtocolError:
            self._fail()
            raise
        return wrap(integers, parameters.bits)

    def _opened(
        self,
        ciphers: CipherSum,
        words: npt.NDArray[np.uint32],
        count: int,
        parameters: AdditiveParameters,
    ) -> npt.NDArray[np.int64]:
        key_sum = words.view(np.int32).astype(np.int64)
        if int(np.abs(key_sum).max()) > SMALL_BOUND * count:
            raise refuse(
                "key sum",
                f"it is no sum of {count} secrets; a client masked something else than its key",
            )
        return open_sum(ciphers, key_sum, count, parameters, self._beacon)
