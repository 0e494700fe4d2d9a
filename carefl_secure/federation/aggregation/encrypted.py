"""Aggregation under encryption: masked vectors inside ciphertexts that a key holder opens once."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import CohortError, EngineError, ProtocolError
from carefl_secure.federation.aggregation.base import (
    AggregationProtocol,
    ClientSetup,
    ClientSum,
    MaskedIntegers,
    Nodes,
    ServerSetup,
    ServerSum,
)
from carefl_secure.federation.aggregation.helper_session import KEY_LABEL, Helper, HolderSession
from carefl_secure.federation.aggregation.pairwise import PairwiseClientSum, PairwiseServerSum
from carefl_secure.federation.aggregation.prefetch import KeyPrefetch
from carefl_secure.federation.plan.ciphertext_packing import narrow, widen
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.noise import KeySource
from carefl_secure.secagg import EncryptedClient, EncryptedParameters, EncryptedServer
from carefl_secure.secagg.primitives.crypto import verify

__all__ = ["Encrypted", "EncryptedClientSum", "EncryptedServerSum", "HolderKey", "read_key"]

_SIGNATURE = 64
_LENGTH = struct.Struct("<I")


class HolderKey(NamedTuple):
    """A public key for one round and the agreement that it belongs to."""

    parameters: EncryptedParameters
    public: bytes


def read_key(message: bytes, cohort: Cohort, plan: RunPlan, number: int) -> HolderKey:
    """Check the key holder's message and return the key with the agreement.

    Raises ProtocolError unless the cohort's key holder signed it for exactly this round.
    """
    signature, public = message[:_SIGNATURE], message[_SIGNATURE:]
    parameters = cohort.encrypted_parameters(plan, number, hashlib.sha256(public).digest())
    fields = KEY_LABEL, parameters.key_context()
    verify(parameters.key_holder, signature, 0, *fields, party="the key holder,")
    return HolderKey(parameters, public)


class EncryptedClientSum(PairwiseClientSum):
    """A client of pairwise masking whose upload is encrypted.

    ``key`` has been checked; ``message`` is what it came in.
    """

    def __init__(self, client: EncryptedClient, key: HolderKey, message: bytes) -> None:
        super().__init__(client)
        client.load_key(key.public)
        self._message = message

    def mask(self, vector: NDArray[Any]) -> bytes:
        """Widen, mask and encrypt the vector."""
        return super().mask(widen(vector))

    def save(self) -> bytes:
        """Return the key holder's message and the sealed state."""
        return _LENGTH.pack(len(self._message)) + self._message + super().save()


class EncryptedServerSum(ServerSum):
    """The aggregator of encrypted vectors: pairwise masking, and two messages to the key holder."""

    action = PairwiseServerSum.action

    def __init__(
        self, setup: ServerSetup, exchange: Exchange, number: int, model_hash: bytes
    ) -> None:
        self._setup = setup
        self._exchange = exchange
        self._number = number
        self._model_hash = model_hash
        self._begun: tuple[EncryptedServer, PairwiseServerSum] | None = None

    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Have the key holder make a key, hand it to the clients, and go on as in pairwise."""
        setup = self._setup
        header = setup.header(self._number)
        setup.directory.learn(self._exchange, nodes())
        message = self._ask_holder(pack(**header), "query.holder_key", "key")
        key = read_key(message, setup.cohort, setup.plan, self._number)
        server = EncryptedServer(key.parameters, key.public)
        told = {**header, "key": message}
        pairwise = PairwiseServerSum(self._exchange, told, server, self._model_hash)
        self._begun = server, pairwise
        return pairwise.prepare(setup.directory.clients)

    def collect(self, node: int, content: RecordDict) -> None:
        """Add one encrypted vector."""
        self._parts()[1].collect(node, content)

    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Have the key holder decrypt the masked sum, then the survivors take the masks off."""
        server, pairwise = self._parts()
        request = pack(model=self._model_hash, sum=server.encrypted_sum())
        server.opened(self._ask_holder(request, "query.open_sum", "opened"))
        total, survivors = pairwise.open()
        return narrow(total, self._setup.plan.encoding.bits), survivors

    def clients(self) -> Mapping[int, int]:
        """Return the place in the roster of the clients that have sent something, by node."""
        return {} if self._begun is None else self._begun[1].clients()

    def _ask_holder(self, content: RecordDict, action: str, answer: str) -> bytes:
        asked = dict.fromkeys(self._setup.directory.helpers(), content)
        for _, reply in self._exchange.ask(asked, action):
            return Fields(reply, answer).octets(answer)
        raise CohortError(
            "the key holder does not answer, so no sum can be opened and nothing was released; "
            "bring it back and start a new round"
        )

    def _parts(self) -> tuple[EncryptedServer, PairwiseServerSum]:
        if self._begun is None:
            raise EngineError("vectors came before the round was prepared; start the strategy anew")
        return self._begun


class Encrypted(AggregationProtocol):
    """Pairwise masking whose uploads are encrypted under BFV, opened by a separate key holder."""

    name: ClassVar[str] = "encrypted"

    def helpers(self, committee_members: int) -> int:
        """Return 1: the key holder."""
        return 1

    def helper(
        self,
        index: int,
        identity: Ed25519PrivateKey,
        plan: RunPlan,
        cohort: Cohort,
        keys: KeySource,
    ) -> Helper:
        """Return the key holder's session."""
        return HolderSession(index, identity, plan, cohort)

    def client(self, setup: ClientSetup, number: int, key: bytes) -> ClientSum:
        """Return a client's part in a round, under the key holder's key."""
        checked = read_key(key, setup.cohort, setup.plan, number)
        client = EncryptedClient(checked.parameters, setup.index, setup.identity, setup.keys)
        return EncryptedClientSum(client, checked, key)

    def restore(
        self, setup: ClientSetup, saved: bytes, number: int, model_hash: bytes
    ) -> ClientSum:
        """Go on from a saved part."""
        if len(saved) < _LENGTH.size:
            raise ProtocolError("the saved session is cut short; the client sits this round out")
        end = _LENGTH.size + _LENGTH.unpack_from(saved)[0]
        message = saved[_LENGTH.size : end]
        key = read_key(message, setup.cohort, setup.plan, number)
        parameters = key.parameters.bind(model_hash) if model_hash else key.parameters
        client = EncryptedClient.restore(saved[end:], setup.identity, parameters, setup.keys)
        return EncryptedClientSum(client, key, message)

    def server(
        self,
        setup: ServerSetup,
        exchange: Exchange,
        number: int,
        model_hash: bytes,
        prefetched: KeyPrefetch | None,
        following: KeyPrefetch | None,
    ) -> ServerSum:
        """Return the aggregator's part in a round."""
        return EncryptedServerSum(setup, exchange, number, model_hash)
