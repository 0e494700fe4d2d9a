"""Summing under encryption: the peers' masks inside ciphertexts that a key holder opens once."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import CohortError, EngineError, ProtocolError
from carefl_secure.federation.aggregation.base import MaskedIntegers, Nodes, ServerSum
from carefl_secure.federation.aggregation.pairwise import PairwiseClientSum, PairwiseServerSum
from carefl_secure.federation.plan.ciphertext_packing import narrow, widen
from carefl_secure.federation.plan.cohort import Cohort, rotation_key
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.federation.transport.node_directory import Directory
from carefl_secure.noise import KeySource
from carefl_secure.secagg import EncryptedClient, EncryptedParameters, EncryptedServer
from carefl_secure.secagg.primitives.crypto import sign, verify

__all__ = [
    "EncryptedClientSum",
    "EncryptedServerSum",
    "HolderKey",
    "read_key",
    "sign_key",
]

_LABEL = b"round key"
_SIGNATURE = 64
_LENGTH = struct.Struct("<I")


class HolderKey(NamedTuple):
    """A public key for one round and the agreement that it belongs to."""

    parameters: EncryptedParameters
    public: bytes


def sign_key(public: bytes, parameters: EncryptedParameters, identity: Ed25519PrivateKey) -> bytes:
    """Return the key holder's message: its signature over the agreement, then the public key.

    ``Sign("round key"; ctx) || public key``, where ctx holds the key's hash, the round, the model,
    the plan and all rosters.
    """
    return sign(identity, _LABEL, parameters.context()) + public


def read_key(
    message: bytes, cohort: Cohort, plan: RunPlan, number: int, model_hash: bytes
) -> HolderKey:
    """Check the key holder's message and return the key with the agreement.

    Raises
    ------
    ProtocolError
        When it is not the key holder of the cohort that gave this key for exactly this round.
    """
    signature, public = message[:_SIGNATURE], message[_SIGNATURE:]
    digest = hashlib.sha256(public).digest()
    parameters = cohort.encrypted_parameters(plan, number, model_hash, digest)
    verify(
        parameters.key_holder, signature, 0, _LABEL, parameters.context(), party="the key holder,"
    )
    return HolderKey(parameters, public)


class EncryptedClientSum(PairwiseClientSum):
    """A client among peers whose upload is encrypted.

    Parameters
    ----------
    client : EncryptedClient
        The state machine of this round.
    key : HolderKey
        The checked key.
    message : bytes
        The message that it came in.
    """

    def __init__(self, client: EncryptedClient, key: HolderKey, message: bytes) -> None:
        super().__init__(client)
        client.load_key(key.public)
        self._message = message

    def mask(self, vector: NDArray[Any], messages: Mapping[int, bytes]) -> bytes:
        """Widen, mask and encrypt the vector; ``messages`` are the peers' shares."""
        return super().mask(widen(vector), messages)

    def save(self) -> bytes:
        """Return the key holder's message and the sealed state."""
        return _LENGTH.pack(len(self._message)) + self._message + super().save()

    @classmethod
    def restore(
        cls,
        saved: bytes,
        identity: Ed25519PrivateKey,
        cohort: Cohort,
        plan: RunPlan,
        number: int,
        model_hash: bytes,
        keys: KeySource,
    ) -> EncryptedClientSum:
        """Go on from what `save` returned.

        Raises
        ------
        ProtocolError
            When it was changed, or belongs to another client or round.
        """
        if len(saved) < _LENGTH.size:
            raise ProtocolError("the saved session is cut short; the client sits this round out")
        end = _LENGTH.size + _LENGTH.unpack_from(saved)[0]
        message = saved[_LENGTH.size : end]
        key = read_key(message, cohort, plan, number, model_hash)
        client = EncryptedClient.restore(saved[end:], identity, key.parameters, keys)
        return cls(client, key, message)


class EncryptedServerSum(ServerSum):
    """The aggregator of encrypted vectors: the peers' phases, and two messages to the key holder.

    Parameters
    ----------
    exchange : Exchange
        The wire of this round.
    told : mapping
        Round, model and plan: what every party is told first.
    plan, cohort, number, model_hash
        The agreement, but for the key that the key holder is yet to make.
    directory : Directory
        Which node is which client, and which the key holder.
    """

    action = PairwiseServerSum.action

    def __init__(
        self,
        exchange: Exchange,
        told: Mapping[str, int | bytes],
        plan: RunPlan,
        cohort: Cohort,
        directory: Directory,
        number: int,
        model_hash: bytes,
    ) -> None:
        self._exchange = exchange
        self._told = told
        self._plan = plan
        self._cohort = cohort
        self._directory = directory
        self._number = number
        self._model_hash = model_hash
        self.rotation = rotation_key(cohort.round_parameters(plan, number, model_hash))
        self._server: EncryptedServer | None = None
        self._peers: PairwiseServerSum | None = None

    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Have the key holder make a key, hand it to the clients, and go on as among peers."""
        self._directory.learn(self._exchange, nodes())
        message = self._ask_holder(pack(**self._told), "query.holder_key", "key")
        key = read_key(message, self._cohort, self._plan, self._number, self._model_hash)
        self._server = EncryptedServer(key.parameters, key.public)
        hello = pack(**self._told, key=message)
        self._peers = PairwiseServerSum(self._exchange, hello, self._server)
        return self._peers.prepare(self._directory.clients)

    def collect(self, node: int, content: RecordDict) -> None:
        """Add one encrypted vector."""
        self._begun()[1].collect(node, content)

    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Have the key holder decrypt the masked sum, then the survivors take the masks off."""
        server, peers = self._begun()
        request = pack(sum=server.encrypted_sum())
        server.opened(self._ask_holder(request, "query.open_sum", "opened"))
        total, survivors = peers.open()
        return narrow(total, self._plan.encoding.bits), survivors

    def clients(self) -> Collection[int]:
        """Return the nodes of the clients heard so far."""
        return () if self._peers is None else self._peers.clients()

    def _ask_holder(self, content: RecordDict, action: str, answer: str) -> bytes:
        asked = dict.fromkeys(self._directory.helpers(), content)
        for _, reply in self._exchange.ask(asked, action):
            return Fields(reply, answer).octets(answer)
        raise CohortError(
            "the key holder does not answer, so no sum can be opened and nothing was released; "
            "bring it back and start a new round"
        )

    def _begun(self) -> tuple[EncryptedServer, PairwiseServerSum]:
        if self._server is None or self._peers is None:
            raise EngineError("vectors came before the round was prepared; start the strategy anew")
        return self._server, self._peers
