"""The key holder for the length of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from flwr.app import RecordDict

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.aggregation.base import ClientSetup, Helper
from carefl_secure.federation.transport.error_codes import Party
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.secagg import KeyHolder
from carefl_secure.secagg.primitives.crypto import sign

KEY_LABEL = b"round key"
"""What the key holder signs its key for a round under."""

ACTIONS = ("query.holder_key", "query.open_sum")
"""The steps of the key holder."""


class HolderSession(Helper):
    """The key holder for the length of one run.

    Guarantees
    ----------
    It makes a key for every round, signs it together with the round's whole agreement, adds the
    uploads that the clients signed for that round, opens their sum once and destroys the key
    (`KeyHolder`, which says what remains). What it decrypts still carries the clients' masks.
    """

    party: ClassVar[Party] = "key holder"

    def __init__(self, setup: ClientSetup) -> None:
        super().__init__(setup)
        self._key: KeyHolder | None = None

    def actions(self) -> Mapping[str, Callable[[RecordDict], RecordDict]]:
        """Return the steps of the key holder."""
        return dict(zip(ACTIONS, (self._make_key, self._open_sum), strict=True))

    def _make_key(self, content: RecordDict) -> RecordDict:
        """Begin a round: make its key pair and return a signature and the public key.

        ``Sign("round key"; kctx) || public key``, where kctx holds the key's hash, the round, the
        plan and all rosters.
        """
        fields, setup = Fields(content, "round", "plan"), self._setup
        number = fields.integer("round")
        self._check(number, fields.octets("plan"))
        self.close()
        self._round, self._key = number, KeyHolder(setup.identity)
        digest = self._key.public_digest
        parameters = setup.cohort.encrypted_parameters(setup.plan, number, digest)
        signature = sign(setup.identity, KEY_LABEL, parameters.key_context())
        return pack(key=signature + self._key.public_key)

    def _open_sum(self, content: RecordDict) -> RecordDict:
        """Add uploads; with the last portion, decrypt the one sum. A refusal destroys the key."""
        if self._key is None:
            raise ProtocolError("there is no open round; it was answered, abandoned or never begun")
        key, setup = self._key, self._setup
        try:
            fields = Fields(content, "model", "keys", "last", maps=["uploads"])
            parameters = setup.cohort.encrypted_parameters(
                setup.plan, self._round, key.public_digest, fields.octets("model")
            )
            key.add(parameters, fields.octets("keys"), fields.map("uploads"))
            opened = key.open() if fields.integer("last") else b""
        except ProtocolError:
            self.close()
            raise
        if opened:
            self.close()
        return pack(opened=opened)

    def close(self) -> None:
        """Destroy the key of the round in progress."""
        if self._key is not None:
            self._key.destroy()
            self._key = None
