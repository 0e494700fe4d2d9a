"""What BFV and CKKS share of TenSEAL: loading public keys and ciphertexts with every check made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from carefl_secure.errors import ProtocolError
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import Buffer

__all__ = ["Parameters", "SealPublicKey", "check_parameters", "public_bytes", "tenseal_module"]

Parameters = tuple[int, int, tuple[int, ...]]
"""Size of the ring, plain modulus (0 under CKKS), primes of the ciphertexts."""


def tenseal_module() -> Any:
    """Import TenSEAL, late: it takes a while and most runs need none of it."""
    import tenseal
    import tenseal.sealapi  # registers the types that tenseal itself returns

    return tenseal


class SealPublicKey:
    """A key that encrypts and adds; the schemes say how numbers go in.

    Parameters
    ----------
    raw
        A context, serialised without its secret.
    parameters
        What it must be of.

    Raises
    ------
    ProtocolError
        If the bytes are no public key of exactly these parameters, or hold a secret key.
    """

    def __init__(self, raw: bytes, parameters: Parameters) -> None:
        try:
            context = tenseal_module().context_from(raw, n_threads=1)
        except (ValueError, RuntimeError, TypeError) as error:
            raise refuse("public key", "it cannot be read") from error
        if context.has_secret_key():
            raise refuse("public key", "it holds a secret key; never send that")
        if not context.has_public_key():
            raise refuse("public key", "there is none in it")
        check_parameters(context, parameters)
        self.digest = hashlib.sha256(raw).digest()
        self._context = context
        self._first = context.seal_context().data.first_parms_id()

    def add(self, total: list[Any] | None, parts: Sequence[Any]) -> list[Any]:
        """Add loaded ciphertexts to a running sum, in place, and return it."""
        if total is None:
            return list(parts)
        for left, right in zip(total, parts, strict=True):
            left.add_(right)
        return total

    def _read(self, kind: Callable[..., Any], ciphertext: Buffer, slots: int) -> tuple[Any, Any]:
        """Load one ciphertext; return TenSEAL's vector and what is inside it."""
        try:
            vector = kind(self._context.data, bytes(ciphertext))
            parts = vector.ciphertext()
        except (ValueError, RuntimeError, TypeError) as error:
            raise refuse("ciphertext form", "it cannot be read") from error
        if len(parts) != 1 or vector.size() != slots:
            raise refuse("ciphertext form", f"it is not one ciphertext of {slots} slots")
        if parts[0].size() != 2 or parts[0].parms_id() != self._first:
            raise self._foreign()
        return vector, parts[0]

    @staticmethod
    def _foreign() -> ProtocolError:
        return refuse("ciphertext form", "it is of other parameters, or was computed with")


def public_bytes(context: Any) -> bytes:
    """Serialise a context without its secret and without keys that are not needed."""
    raw: bytes = context.serialize(
        save_public_key=True,
        save_secret_key=False,
        save_galois_keys=False,
        save_relin_keys=False,
    )
    return raw


def check_parameters(context: Any, parameters: Parameters) -> None:
    """Refuse a context of other parameters.

    Raises
    ------
    ProtocolError
        If it is.
    """
    inner = context.seal_context().data.key_context_data().parms()
    found = (
        inner.poly_modulus_degree(),
        inner.plain_modulus().value(),
        tuple(prime.value() for prime in inner.coeff_modulus()),
    )
    if found != parameters:
        raise refuse("public key", "it is of other parameters than those agreed on")
