"""Our encrypted sums against TenSEAL's CKKS as it is usually set up: CPU, bytes, exactness.

    python benchmarks/he.py [--quick] [--json]

Ten clients encrypt, a server adds, a key holder decrypts the sum; one thread, interleaved, CPU per
client of the whole round. Ours is BFV with three signed fields of 20 bits in a slot (N = 4096,
[32, 56, 21], t near 2^60), packing and the check of the noise budget included. The peer is CKKS
with N = 8192, [60, 40, 60] and scale 2^40, through TenSEAL's own vectors. Without a bar stands
CKKS at the smallest ring that holds such sums, N = 4096, [54, 54] and scale 2^26. A note gives what
our key holder does for each upload: it reads and hashes it, checks its signature, and adds it.

Bars: at least 6 times less CPU and 6 times fewer bytes at a million integers, and our sum is exact.
``--quick`` takes fewer integers and asks for 4 times less CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import tenseal
from _bench import Bar, Report, arguments, cpu, finish, say
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.secagg import EncryptedParameters, KeyHolder, default_threshold
from carefl_secure.secagg.encrypted.bfv import PLAIN_MODULUS, PublicKey, SecretKey
from carefl_secure.secagg.encrypted.messages import EncryptedUpload
from carefl_secure.secagg.encrypted.packing import from_residues, pack_fields, slots, to_residues, unpack_fields
from carefl_secure.secagg.pairwise.transcript import UPLOAD
from carefl_secure.secagg.primitives.crypto import sign, statement

CLIENTS, FIELD_BITS = 10, 20
STEPS = ("encrypted", "load + add", "decrypt")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep TenSEAL's C++ warnings about long vectors off the terminal."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


class Ours:
    """Packed BFV."""

    name = "BFV, 3 fields"

    def __init__(self) -> None:
        self._secret = SecretKey()
        self._public = PublicKey(self._secret.public())

    def encrypt(self, vector: npt.NDArray[np.int64]) -> list[bytes]:
        """Return what a client sends."""
        packed = pack_fields(vector, FIELD_BITS)
        return self._public.encrypt(to_residues(packed, PLAIN_MODULUS))

    def add(self, total: Any, message: list[bytes]) -> Any:
        """Load a message and add it to the running sum."""
        return self._public.add(total, [self._public.load(chunk) for chunk in message])

    def decrypt(self, total: Any, dimension: int) -> npt.NDArray[np.float64]:
        """Return the sum in the clear."""
        opened = self._secret.decrypt(total)[: slots(dimension, FIELD_BITS)]
        numbers = from_residues(opened, PLAIN_MODULUS)
        return unpack_fields(numbers, dimension, FIELD_BITS).astype(np.float64)


class Ckks:
    """TenSEAL's CKKS vectors, with their own chunking."""

    def __init__(self, degree: int, bits: list[int], scale: float) -> None:
        self.name = f"CKKS {bits}"
        self._context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=bits, n_threads=1)
        self._context.global_scale = scale

    def encrypt(self, vector: npt.NDArray[np.int64]) -> list[bytes]:
        """Return what a client sends."""
        return [tenseal.ckks_vector(self._context, vector.tolist()).serialize()]

    def add(self, total: Any, message: list[bytes]) -> Any:
        """Load a message and add it to the running sum."""
        loaded = tenseal.ckks_vector_from(self._context, message[0])
        if total is None:
            return loaded
        total.add_(loaded)
        return total

    def decrypt(self, total: Any, dimension: int) -> npt.NDArray[np.float64]:
        """Return the sum in the clear."""
        return np.array(total.decrypt()[:dimension])


Scheme = Ours | Ckks


def held(dimension: int) -> tuple[float, float]:
    """Return the key holder's CPU seconds per client: with the checks, and to load and add ciphertexts alone."""
    identities = [Ed25519PrivateKey.generate() for _ in range(CLIENTS)]
    own = Ed25519PrivateKey.generate()
    holder = KeyHolder(own)
    agreed = EncryptedParameters(
        task=b"benchmark",
        round=1,
        dimension=dimension,
        bits=32,
        threshold=default_threshold(CLIENTS),
        min_survivors=CLIENTS,
        model_hash=bytes(32),
        base_hash=bytes(32),
        plan_hash=bytes(32),
        roster=tuple(one.public_key().public_bytes_raw() for one in identities),
        key_holder=own.public_key().public_bytes_raw(),
        public_key=holder.public_digest,
        value_bound=1000,
    )
    key = PublicKey(holder.public_key)
    random, keys, uploads = np.random.default_rng(0), bytes(32), {}
    for index, identity in enumerate(identities):
        packed = pack_fields(random.integers(-1000, 1001, dimension), FIELD_BITS)
        upload = EncryptedUpload(tuple(key.encrypt(to_residues(packed, PLAIN_MODULUS))))
        stated = statement(agreed.context(), keys, index, upload.digest())
        uploads[index] = upload.signed(sign(identity, UPLOAD, *stated)).encode(index, agreed.context())
    chunks = [EncryptedUpload.parse(one, i, agreed).chunks for i, one in uploads.items()]
    _, whole = cpu(lambda: holder.add(agreed, keys, uploads))
    total: Any = None
    alone = 0.0
    for each in chunks:
        total, seconds = cpu(lambda t=total, c=each: key.add(t, [key.load(chunk) for chunk in c]))
        alone += seconds
    holder.open()
    return whole / CLIENTS, alone / CLIENTS


def play(scheme: Scheme, vectors: list[Any]) -> tuple[dict[str, float], float, float]:
    """Return CPU seconds per client by step, bytes per parameter and the largest error."""
    spent, size, total = dict.fromkeys(STEPS, 0.0), 0, None
    for vector in vectors:
        with quiet():
            message, seconds = cpu(lambda v=vector: scheme.encrypt(v))
        spent["encrypted"] += seconds / len(vectors)
        size = sum(map(len, message))
        total, seconds = cpu(lambda t=total, m=message: scheme.add(t, m))
        spent["load + add"] += seconds / len(vectors)
    opened, seconds = cpu(lambda: scheme.decrypt(total, vectors[0].size))
    spent["decrypt"] = seconds / len(vectors)
    return spent, size / vectors[0].size, float(np.abs(opened - sum(vectors)).max())


def main() -> int:
    """Measure, print, judge."""
    chosen = arguments(__doc__)
    report = Report("Encrypted sums of ten clients: CPU seconds per client, bytes per parameter")
    bfv, ckks = Ours(), Ckks(8192, [60, 40, 60], 2.0**40)
    small = Ckks(4096, [54, 54], 2.0**26)
    schemes: tuple[Scheme, ...] = (bfv, small, ckks)
    worst: dict[str, float] = {"cpu": float("inf"), "bytes": float("inf"), "error": 0.0}
    for dimension in (300_000,) if chosen.quick else (100_000, 1_000_000):
        say(f"d={dimension}")
        random = np.random.default_rng(0)
        vectors = [random.integers(-1000, 1001, dimension) for _ in range(CLIENTS)]
        best: dict[str, dict[str, float]] = {}
        sizes, errors = {}, {}
        for _ in range(2 if chosen.quick else 3):
            for scheme in schemes:
                spent, sizes[scheme.name], errors[scheme.name] = play(scheme, vectors)
                old = best.get(scheme.name, spent)
                best[scheme.name] = {step: min(old[step], spent[step]) for step in STEPS}
        for name, steps in best.items():
            report.rows.append(
                {
                    "d": dimension,
                    "scheme": name,
                    **steps,
                    "all": sum(steps.values()),
                    "B/param": sizes[name],
                    "error": errors[name],
                }
            )
        ours, theirs = (sum(best[s.name].values()) for s in (bfv, ckks))
        worst["cpu"] = theirs / ours  # of the largest vector
        worst["bytes"] = min(worst["bytes"], sizes[ckks.name] / sizes[bfv.name])
        worst["error"] = max(worst["error"], errors[bfv.name])
        whole, alone = held(dimension)
        report.notes.append(
            f"d={dimension}: the key holder takes {whole:.3g} s of CPU for each signed upload, "
            f"{whole / alone:.2f} times what it takes to load and add the ciphertexts alone"
        )
    report.bars += [
        Bar("CPU, times less", worst["cpu"], 4 if chosen.quick else 6),
        Bar("bytes, times fewer", worst["bytes"], 6),
        Bar("largest error of our sums", worst["error"], 0, at_least=False),
    ]
    return finish(report, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
