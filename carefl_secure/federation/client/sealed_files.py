"""Files that a client keeps between the rounds of a run, sealed so that nobody else can read or replace them."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import KeySource
from carefl_secure.run_folder import make_folder, write_atomically
from carefl_secure.secagg.primitives.crypto import derive, digest, pack

_MAGIC = b"CFKF\x01"
_NONCE = 12


class SealedFiles:
    r"""One client's files of one run, ``path-<round>.<kind>``, sealed with AES-256-GCM.

    A file holds magic, version, a fresh nonce of 12 bytes from ``keys``, and ciphertext with tag. The key is derived
    from ``secret`` by HKDF-SHA256 under the label ``kept files``. The associated data are magic, version and SHA-256
    over ``place`` (run, plan and client), the kind of content and the round.

    Guarantees
    ----------
    Without ``secret`` a file tells its length, kind and round only, and one that was changed, or written for another
    run, plan, client, kind or round, does not open. It assumes that AES-256-GCM and HKDF-SHA256 hold, that nonces do
    not repeat among fewer than 2^32 files, and that ``secret`` is kept elsewhere: next to the files it protects
    nothing. An older copy of the same file opens.
    """

    def __init__(self, path: Path, secret: bytes, place: tuple[bytes, ...], keys: KeySource) -> None:
        self._path, self._place, self._keys = path, place, keys
        self._cipher = AESGCM(derive(secret, b"kept files"))

    def find(self, suffix: str) -> dict[int, Path]:
        """Return the files of a suffix by round, ascending; others in the folder are passed over."""
        stem = f"{self._path.name}-"
        found = {file.stem.removeprefix(stem): file for file in self._path.parent.glob(f"{stem}*.{suffix}")}
        return dict(sorted((int(number), file) for number, file in found.items() if number.isdecimal()))

    def write(self, kind: str, number: int, content: bytes, suffix: str = "") -> None:
        """Seal and replace a file, of mode 0600; RunError where the file system refuses."""
        make_folder(self._path.parent)
        nonce = self._keys.key("nonce")[:_NONCE]
        sealed = _MAGIC + nonce + self._cipher.encrypt(nonce, content, self._bound(kind, number))
        write_atomically(self._path.with_name(f"{self._path.name}-{number}.{suffix or kind}"), sealed, private=True)

    def read(self, file: Path, kind: str, number: int) -> bytes:
        """Open a file; ProtocolError where it is damaged, or of another key, run, plan, client, kind or round."""
        try:
            blob = file.read_bytes()
        except OSError as error:
            raise ProtocolError(f"{file} cannot be read: {error.strerror}") from error
        start = len(_MAGIC) + _NONCE
        if blob[: len(_MAGIC)] != _MAGIC:
            raise ProtocolError(f"{file} is no sealed file of this version")
        try:
            return self._cipher.decrypt(blob[len(_MAGIC) : start], blob[start:], self._bound(kind, number))
        except (InvalidTag, ValueError) as error:
            raise ProtocolError(
                f"{file} does not open: it is damaged, or of another key, run, client or round"
            ) from error

    def _bound(self, kind: str, number: int) -> bytes:
        return _MAGIC + digest(b"kept file", *self._place, kind.encode(), pack(number))
