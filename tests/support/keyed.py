"""All parties of one round with a key holder, whatever its scheme; shared by the tests of both."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg import RoundParameters
from carefl_secure.secagg.encrypted.messages import EncryptedUpload
from carefl_secure.secagg.pairwise import transcript
from carefl_secure.secagg.primitives.crypto import sign, statement

HOLDER = Ed25519PrivateKey.from_private_bytes(b"h" * 32)

Vectors = dict[int, npt.NDArray[Any]]


class KeyedRound:
    """Clients, aggregator and key holder; a scheme names the classes of each."""

    scheme: tuple[Any, Any, Any, Any]  # key holder, parameters, server, client

    def __init__(self, base: RoundParameters, identities: list[Any], **changes: Any) -> None:
        make_holder, make_parameters, make_server, make_client = self.scheme
        self.holder = make_holder(HOLDER)
        fields: dict[str, Any] = {
            **vars(base),
            "key_holder": HOLDER.public_key().public_bytes_raw(),
            "public_key": self.holder.public_digest,
        }
        self.parameters = make_parameters(**{**fields, **changes})
        self.server = make_server(self.parameters, self.holder.public_key)
        self.clients = {
            i: make_client(self.parameters, i, identities[i], DeterministicKeySource(b"seed" + bytes([i])))
            for i in range(base.clients)
        }
        self.uploads: dict[int, bytes] = {}
        for client in self.clients.values():
            client.load_key(self.holder.public_key)

    def agree(self) -> None:
        """Advertise and share keys: all that comes before the vectors."""
        for i, client in self.clients.items():
            self.server.advertised(i, client.advertise())
        listed = self.server.advertisements()
        for i, client in self.clients.items():
            self.server.shared(i, client.share(listed))

    def upload(self, vectors: Vectors, gone: tuple[int, ...] = ()) -> None:
        """Mask, encrypt and hand in."""
        for i, client in self.clients.items():
            if i not in gone:
                self.hand_in(i, client.mask(vectors[i], self.server.inbox(i)))

    def hand_in(self, index: int, message: bytes) -> None:
        """Have the server take in an upload, and keep it for the key holder."""
        self.server.uploaded(index, message)
        self.uploads[index] = message

    def masked(self, vectors: Vectors, gone: tuple[int, ...] = ()) -> None:
        """Play the round up to the uploads."""
        self.agree()
        self.upload(vectors, gone)

    def unmask(self, gone: tuple[int, ...] = ()) -> None:
        """Sign the survivors and give their shares."""
        shared, survivors = self.server.survivors()
        for i in set(survivors) - set(gone):
            self.server.signed(i, self.clients[i].sign(shared, survivors))
        signatures = self.server.signatures()
        for i in set(survivors) - set(gone):
            self.server.answered(i, self.clients[i].unmask(signatures))

    def open(self) -> None:
        """Have the key holder decrypt the sum."""
        self.server.survivors()
        self.holder.add(self.parameters, self.server.transcript_hash, self.uploads)
        self.server.opened(self.holder.open())

    def restore(self, index: int, vector: npt.NDArray[Any]) -> None:
        """Put a client back from what it saved; it masks nothing before it has the key again."""
        old = self.clients[index]
        new = type(old).restore(old.save(), old._identity, self.parameters, DeterministicKeySource(b"x"))
        assert type(new) is type(old)
        with pytest.raises(ProtocolError, match=r"^public key: none was loaded"):
            new.mask(vector, self.server.inbox(index))
        new.load_key(self.holder.public_key)
        self.clients[index] = new

    def signed_as(self, index: int, chunks: tuple[bytes, ...]) -> bytes:
        """Return ciphertexts under a client's true signature."""
        client, context = self.clients[index], self.parameters.context()
        body = EncryptedUpload(chunks, b"").digest()
        fields = statement(context, client._state.transcript_hash, index, body)
        signature = sign(client._identity, transcript.UPLOAD, *fields)
        return EncryptedUpload(chunks, signature).encode(index, context)

    def refuses_uploads_of(self, old: KeyedRound) -> bytes:
        """Hand in what a client said in another round; return the new round's mark on messages."""
        vectors = self.vectors()
        for played in (old, self):
            played.masked(vectors, gone=(3,) if played is self else ())
        top, stale = self.parameters.context()[:8], old.uploads[3]
        with pytest.raises(ProtocolError, match=r"^message context"):
            self.server.uploaded(3, stale)
        with pytest.raises(ProtocolError, match=r"^upload signature"):
            self.server.uploaded(3, stale[:8] + top + stale[16:])
        return top

    def vectors(self, seed: int = 0) -> Vectors:
        """Return one vector for each client."""
        raise NotImplementedError
