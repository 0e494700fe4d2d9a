"""Aggregation under encryption: masked vectors in ciphertexts that a key holder (its session is here) opens once."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar

from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import CohortError, EngineError, ProtocolError
from carefl_secure.federation.aggregation import base
from carefl_secure.federation.aggregation.pairwise import PairwiseServerSum
from carefl_secure.federation.aggregation.upload_buffer import UploadBuffer
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.error_codes import Party
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.secagg import EncryptedClient, EncryptedParameters, EncryptedServer, KeyHolder
from carefl_secure.secagg.encrypted.packing import narrow, widen
from carefl_secure.secagg.primitives.crypto import sign, verify

KEY_LABEL = b"round key"
"""What the key holder signs its key for a round under."""

ACTIONS = ("query.holder_key", "query.open_sum")
"""The steps of the key holder."""

T = TypeVar("T")
_SIGNATURE = 64
_LENGTH = struct.Struct("<I")
_PORTION = 1 << 26  # bytes of uploads in one message to the key holder


class HolderSession(base.Helper):
    """The key holder for the length of one run.

    Guarantees
    ----------
    It makes a key for every round, signs it together with the round's whole agreement, adds the
    uploads that the clients signed for that round, opens their sum once and destroys the key
    (`KeyHolder`, which says what remains). What it decrypts still carries the clients' masks.
    """

    party: ClassVar[Party] = "key holder"

    def __init__(self, setup: base.ClientSetup) -> None:
        super().__init__(setup)
        self._key: KeyHolder | None = None

    def actions(self) -> Mapping[str, Callable[[RecordDict], RecordDict]]:
        """Return the steps of the key holder."""
        return dict(zip(ACTIONS, (self._make_key, self._open_sum), strict=True))

    def _make_key(self, content: RecordDict) -> RecordDict:
        """Begin a round: make its key; return the signature over key, round, plan and rosters, and the public key."""
        fields, setup = Fields(content, "round", "plan"), self._setup
        number = fields.integer("round")
        self._check(number, fields.octets("plan"))
        self.close()
        self._round, self._key = number, KeyHolder(setup.identity)
        parameters = setup.cohort.encrypted_parameters(setup.plan, number, self._key.public_digest)
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


def read_key(message: bytes, cohort: Cohort, plan: RunPlan, number: int) -> tuple[EncryptedParameters, bytes]:
    """Return the agreement and the public key; ProtocolError unless the key holder signed them for just this round."""
    signature, public = message[:_SIGNATURE], message[_SIGNATURE:]
    parameters = cohort.encrypted_parameters(plan, number, hashlib.sha256(public).digest())
    fields = KEY_LABEL, parameters.key_context()
    verify(parameters.key_holder, signature, 0, *fields, party="the key holder,")
    return parameters, public


class EncryptedClientSum(EncryptedClient):
    """A client of an encrypted round that widens vectors and keeps the key holder's message."""

    _message = b""

    def took(self, public: bytes, message: bytes) -> Self:
        """Load a key that has been checked; ``message`` is what it came in."""
        self.load_key(public)
        self._message = message
        return self

    def mask(self, vector: NDArray[Any], messages: Mapping[int, bytes] | None = None) -> bytes:
        """Widen, mask and encrypt the vector."""
        return super().mask(widen(vector), messages)

    def save(self) -> bytes:
        """Return the key holder's message and the sealed state."""
        return _LENGTH.pack(len(self._message)) + self._message + super().save()


class EncryptedServerSum(base.ServerSum):
    """The aggregator of encrypted vectors: pairwise masking, and the signed uploads, on disk, for the key holder."""

    action = PairwiseServerSum.action

    def __init__(self, setup: base.ServerSetup, this: base.ServerRound) -> None:
        self._setup = setup
        self._this = this
        self._begun: tuple[EncryptedServer, PairwiseServerSum] | None = None
        self._buffer = UploadBuffer(setup.folder)
        self._sizes: dict[int, int] = {}

    def prepare(self, nodes: base.Nodes) -> dict[int, RecordDict]:
        """Have the key holder make a key, hand it to the clients, and go on as in pairwise."""
        setup = self._setup
        header = setup.header(self._this.number)
        setup.directory.learn(self._this.exchange, nodes())

        def check(message: bytes) -> tuple[EncryptedParameters, bytes, bytes]:
            return *read_key(message, setup.cohort, setup.plan, self._this.number), message

        parameters, public, message = self._ask_holder(pack(**header), "query.holder_key", "key", check)
        server = EncryptedServer(parameters, public)
        pairwise = PairwiseServerSum(self._this, {**header, "key": message}, server)
        self._begun = server, pairwise
        return pairwise.prepare(setup.directory.clients)

    def collect(self, node: int, content: RecordDict) -> None:
        """Check one encrypted vector and keep it on disk for the key holder."""
        pairwise = self._parts()[1]
        pairwise.collect(node, content)
        index, upload = pairwise.clients()[node], Fields(content, "upload").octets("upload")
        self._buffer.keep(index, upload)
        self._sizes[index] = len(upload)

    def open(self) -> tuple[base.MaskedIntegers, tuple[int, ...]]:
        """Have the key holder decrypt the masked sum, then the survivors take the masks off."""
        server, pairwise = self._parts()
        server.survivors()
        portions = list(self._portions())
        for place, indices in enumerate(portions, start=1):
            uploads = {index: self._buffer.take(index) for index in indices}
            last = int(place == len(portions))
            request = pack(model=self._this.model_hash, keys=server.transcript_hash, last=last, uploads=uploads)
            self._ask_holder(request, "query.open_sum", "opened", server.opened if last else bytes)
        self._buffer.close()
        total, survivors = pairwise.open()
        self.contradictions = pairwise.contradictions
        return narrow(total, self._setup.plan.encoding.bits), survivors

    def _portions(self) -> Iterator[list[int]]:
        """Yield the clients whose uploads go to the key holder in one message."""
        portion: list[int] = []
        for index, size in sorted(self._sizes.items()):
            if portion and sum(self._sizes[i] for i in portion) + size > _PORTION:
                yield portion
                portion = []
            portion.append(index)
        yield portion

    def clients(self) -> Mapping[int, int]:
        """Return the place in the roster of the clients that have sent something, by node."""
        return {} if self._begun is None else self._begun[1].clients()

    def _ask_holder(self, content: RecordDict, action: str, answer: str, check: Callable[[bytes], T]) -> T:
        answers: list[T] = []

        def take(node: int, reply: RecordDict) -> None:
            answers.append(check(Fields(reply, answer).octets(answer)))

        self._this.exchange.gather(dict.fromkeys(self._setup.directory.helpers(), content), action, take)
        if not answers:
            raise CohortError(
                "the key holder does not answer, so no sum can be opened and nothing was released; "
                "bring it back and start a new round"
            )
        return answers[0]

    def _parts(self) -> tuple[EncryptedServer, PairwiseServerSum]:
        if self._begun is None:
            raise EngineError("vectors came before the round was prepared; start the strategy anew")
        return self._begun


class Encrypted(base.AggregationProtocol):
    """Pairwise masking whose uploads are encrypted under BFV, opened by a separate key holder."""

    name: ClassVar[str] = "encrypted"
    helper_actions: ClassVar[Collection[str]] = ACTIONS

    def helpers(self, committee_members: int) -> int:
        """Return 1: the key holder."""
        return 1

    def helper(self, setup: base.ClientSetup) -> base.Helper:
        """Return the key holder's session."""
        return HolderSession(setup)

    def client(self, setup: base.ClientSetup, number: int, key: bytes) -> base.ClientSum:
        """Return a client's part in a round, under the key holder's key."""
        parameters, public = read_key(key, setup.cohort, setup.plan, number)
        return EncryptedClientSum(parameters, setup.index, setup.identity, setup.keys).took(public, key)

    def restore(self, setup: base.ClientSetup, saved: bytes, number: int, model_hash: bytes) -> base.ClientSum:
        """Go on from a saved part."""
        if len(saved) < _LENGTH.size:
            raise ProtocolError("the saved session is cut short; the client sits this round out")
        end = _LENGTH.size + _LENGTH.unpack_from(saved)[0]
        message = saved[_LENGTH.size : end]
        parameters, public = read_key(message, setup.cohort, setup.plan, number)
        parameters = parameters.bind(model_hash) if model_hash else parameters
        return EncryptedClientSum.restore(saved[end:], setup.identity, parameters, setup.keys).took(public, message)

    def server(self, setup: base.ServerSetup, this: base.ServerRound) -> base.ServerSum:
        """Return the aggregator's part in a round."""
        return EncryptedServerSum(setup, this)
