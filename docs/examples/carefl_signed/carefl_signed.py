"""An aggregation protocol from outside carefl-secure: signed vectors that hide nothing.

The server sees every client's vector. That is sound only where each vector is private by itself
(``privacy.trust=none``) or nothing is promised (``privacy.unit=none``); any other plan is refused.
``Witnessed`` adds a helper of its own: no sum is released that the witness did not sign the clients of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import CohortError, ConfigError, ProtocolError
from carefl_secure.federation.aggregation.base import (
    AggregationProtocol,
    ClientSetup,
    ClientSum,
    Helper,
    MaskedIntegers,
    Nodes,
    ServerRound,
    ServerSetup,
    ServerSum,
)
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import Fields, pack

SIGNATURE = 64


def check_plan(plan: RunPlan) -> None:
    """Refuse a plan whose guarantee needs the vectors hidden."""
    if plan.protected and plan.privacy.trust != "none":
        raise ConfigError(
            "the protocol 'signed' hides no vector; set privacy.trust=none, or another federation.aggregation"
        )


def statement(plan: RunPlan, cohort: Cohort, number: int, index: int, *parts: bytes) -> bytes:
    """Return what a client signs: its words, bound to the run, the plan and the round."""
    place = [b"signed/1", cohort.run, plan.hash(), cohort.base_hash, *cohort.roster]
    place += [number.to_bytes(8, "big"), index.to_bytes(4, "big"), *parts]
    return b"".join(hashlib.sha256(part).digest() for part in place)


class SignedClient(ClientSum):
    """A client: one signed greeting, one signed vector."""

    def __init__(self, setup: ClientSetup, number: int, model_hash: bytes = b"") -> None:
        check_plan(setup.plan)
        self._setup, self._number, self._model_hash = setup, number, model_hash

    def _signed(self, *parts: bytes) -> bytes:
        one = self._setup
        return one.identity.sign(statement(one.plan, one.cohort, self._number, one.index, *parts))

    def advertise(self) -> bytes:
        """Say that this client takes part."""
        return self._signed(b"here")

    def bind(self, model_hash: bytes) -> None:
        """Bind the round to its model, once."""
        if self._model_hash:
            raise ProtocolError("the round is bound to a model already")
        self._model_hash = model_hash

    def receive(self, messages: Mapping[int, bytes]) -> None:
        """Accept nothing: clients of this protocol send each other no message."""
        if messages:
            raise ProtocolError("clients of the protocol 'signed' send each other nothing")

    def mask(self, vector: NDArray[Any]) -> bytes:
        """Return the vector with a signature; nothing is masked."""
        words = vector.astype(vector.dtype.newbyteorder("<")).tobytes()
        return self._signed(self._model_hash, words) + words

    def save(self) -> bytes:
        """Return the model's hash: there is no secret."""
        return self._model_hash

    def close(self) -> None:
        """Do nothing: there is no secret."""


class SignedServer(ServerSum):
    """The server: it verifies each vector and adds it."""

    action = "train.masked"

    def __init__(self, setup: ServerSetup, exchange: Exchange, number: int, model_hash: bytes) -> None:
        check_plan(setup.plan)
        self._setup, self._exchange = setup, exchange
        self._number, self._model_hash = number, model_hash
        encoding = setup.plan.encoding
        self._kind = np.dtype(np.uint16 if encoding.bits == 16 else np.uint32).newbyteorder("<")
        self._total: MaskedIntegers = np.zeros(encoding.padded, self._kind.newbyteorder("="))
        self._index_of: dict[int, int] = {}
        self._survivors: list[int] = []

    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Learn which node is a helper, and which of the others is which client."""
        header = self._setup.header(self._number)
        self._setup.directory.learn(self._exchange, nodes())
        ask = dict.fromkeys(self._setup.directory.clients(), pack(**header))
        self._exchange.gather(ask, "query.advertise", self._here)
        return dict.fromkeys(self._index_of, pack(**header, shares={}))

    def _here(self, node: int, reply: RecordDict) -> None:
        """Note a client; what is raised here makes the sender a dropout of the round."""
        fields = Fields(reply, "index", "message")
        index = fields.integer("index")
        self._verify(index, fields.octets("message"), b"here")
        if index in self._index_of.values():
            raise ProtocolError(f"two nodes claim to be client {index}")
        self._index_of[node] = index

    def collect(self, node: int, content: RecordDict) -> None:
        """Verify and add one vector."""
        upload, index = Fields(content, "upload").octets("upload"), self._index_of[node]
        signature, words = upload[:SIGNATURE], upload[SIGNATURE:]
        self._verify(index, signature, self._model_hash, words)
        if len(words) != self._total.nbytes or index in self._survivors:
            raise ProtocolError(f"client {index} sent a vector of another length, or a second one")
        self._total += np.frombuffer(words, self._kind)
        self._survivors.append(index)

    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Return the sum, unless too few clients are in it."""
        needed = self._setup.plan.privacy.min_survivors
        if len(self._survivors) < needed:
            raise CohortError(f"{len(self._survivors)} clients are left, {needed} are needed")
        return self._total, tuple(sorted(self._survivors))

    def clients(self) -> Mapping[int, int]:
        """Return the place in the roster of every client, by node."""
        return self._index_of

    def _verify(self, index: int, signature: bytes, *parts: bytes) -> None:
        roster = self._setup.cohort.roster
        if not 0 <= index < len(roster):
            raise ProtocolError(f"there is no client {index}")
        said = statement(self._setup.plan, self._setup.cohort, self._number, index, *parts)
        try:
            Ed25519PublicKey.from_public_bytes(roster[index]).verify(signature, said)
        except InvalidSignature as error:
            raise ProtocolError(f"a message of client {index} is not signed by it") from error


class Signed(AggregationProtocol):
    """The row of the registry."""

    name: ClassVar[str] = "signed"

    def client(self, setup: ClientSetup, number: int, key: bytes) -> ClientSum:
        """Return a client's part in a round."""
        return SignedClient(setup, number)

    def restore(self, setup: ClientSetup, saved: bytes, number: int, model_hash: bytes) -> ClientSum:
        """Go on from a saved part."""
        if saved != model_hash:
            raise ProtocolError("the saved round is bound to another model")
        return SignedClient(setup, number, model_hash)

    def server(self, setup: ServerSetup, this: ServerRound) -> ServerSum:
        """Return the server's part in a round."""
        return SignedServer(setup, this.exchange, this.number, this.model_hash)


class Witness(Helper):
    """A helper that signs, once a round, which clients are in the sum."""

    def actions(self) -> Mapping[str, Callable[[RecordDict], RecordDict]]:
        """Return its one step."""
        return {"query.witness": self._sign}

    def _sign(self, content: RecordDict) -> RecordDict:
        fields, one = Fields(content, "round", "plan", "survivors"), self._setup
        number, survivors = fields.integer("round"), fields.integers("survivors")
        self._check(number, fields.octets("plan"))
        if len(survivors) < one.plan.privacy.min_survivors:
            raise CohortError(f"{len(survivors)} clients are left, {one.plan.privacy.min_survivors} are needed")
        self._round = number
        said = statement(one.plan, one.cohort, number, self.index, b"witness", bytes(survivors))
        return pack(signature=one.identity.sign(said))

    def close(self) -> None:
        """Do nothing: there is no secret."""


class WitnessedServer(SignedServer):
    """A server that releases only what the witness signed."""

    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Return the sum, unless the witness does not sign."""
        total, survivors = super().open()
        setup, signed = self._setup, list[int]()
        said = statement(setup.plan, setup.cohort, self._number, 0, b"witness", bytes(survivors))

        def take(node: int, reply: RecordDict) -> None:
            key = Ed25519PublicKey.from_public_bytes(setup.cohort.helpers[0])
            try:
                key.verify(Fields(reply, "signature").octets("signature"), said)
            except InvalidSignature as error:
                raise ProtocolError("the witness signed other clients") from error
            signed.append(node)

        ask = pack(**setup.header(self._number), survivors=survivors)
        self._exchange.gather(dict.fromkeys(setup.directory.helpers(), ask), "query.witness", take)
        if not signed:
            raise CohortError("the witness did not sign, so nothing was released")
        return total, survivors


class Witnessed(Signed):
    """The same protocol with a helper of its own."""

    name: ClassVar[str] = "witnessed"
    helper_actions: ClassVar[Collection[str]] = ("query.witness",)

    def helpers(self, committee_members: int) -> int:
        """Return 1: the witness."""
        return 1

    def helper(self, setup: ClientSetup) -> Helper:
        """Return the witness."""
        return Witness(setup)

    def server(self, setup: ServerSetup, this: ServerRound) -> ServerSum:
        """Return the server's part in a round."""
        return WitnessedServer(setup, this.exchange, this.number, this.model_hash)
