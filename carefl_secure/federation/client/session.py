"""One client's side of a run: what it checks, what it spends, what it lets go.

No Flower type appears here; `client.py` carries the bytes, and how the sum is made is up to a
`ClientSum`. The order inside `masked` is the point of this file: the ledger says yes and is written
before the client looks at a single record.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from carefl_secure.errors import NonFiniteError, ProtocolError
from carefl_secure.federation.aggregation.registry import ClientSums
from carefl_secure.federation.client.round_budget import RoundBudget
from carefl_secure.federation.client.round_state import OpenRounds
from carefl_secure.federation.local_update.gradient_sum import local_work
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.messages import vector_hash
from carefl_secure.noise import KeySource, KeyStream, SkellamSampler
from carefl_secure.privacy import Ledger
from carefl_secure.secagg import encode, wrap
from carefl_secure.secagg.primitives.crypto import same

__all__ = ["ClientSession"]

_LENGTH = struct.Struct("<I")
_STAMP = 32


class ClientSession:
    """A client for the length of one run.

    Parameters
    ----------
    index : int
        Place of this client in the roster.
    identity : Ed25519PrivateKey
        Its long-lived key; the public half stands in the roster.
    plan : RunPlan
        What the parties agreed on, held by the client itself and not taken from the server.
    cohort : Cohort
        Run, rosters and base model, likewise; it decides the way of summing.
    task : LocalTask
        Model and records.
    ledger : Ledger
        The client's own account, kept across runs on the same records.
    keys : KeySource
        Fresh keys for sampling, rounding, noise and the secure sum; never the run's seed.
    max_epsilon : float, optional
        The most this client lets all runs in its ledger spend, whatever the server says; the plan's
        target by default.
    memory : Path, optional
        Where the client keeps what it needs from round to round (FedDyn); its own, like the ledger.

    Guarantees
    ----------
    Whatever leaves the client in a round is a function of its masked vector and of messages that do
    not depend on its records. The vector is masked, carries this client's share of the noise, and
    its event is in the ledger, on disk, before the records are read. This rests on the keys being
    unpredictable, on ``task`` clipping as it promises, and on the secure sum's own assumptions.
    Where the plan makes each client's vector private by itself (trust none), not on the last.
    """

    def __init__(
        self,
        index: int,
        identity: Ed25519PrivateKey,
        plan: RunPlan,
        cohort: Cohort,
        task: LocalTask,
        ledger: Ledger,
        keys: KeySource,
        *,
        max_epsilon: float | None = None,
        memory: Path | None = None,
    ) -> None:
        if cohort.roster[index] != identity.public_key().public_bytes_raw():
            raise ProtocolError(
                f"client {index} does not hold the key that the roster names for it; "
                "compare the roster with the client's key file"
            )
        if task.dimension != plan.encoding.dimension:
            raise ProtocolError(
                f"client {index} has an adapter of {task.dimension} entries, the plan "
                f"{plan.encoding.dimension}; the models differ"
            )
        self._work = local_work(plan, task, index, memory)
        self.index = index
        self._plan = plan
        self._cohort = cohort
        self._purse = RoundBudget(ledger, plan, cohort, max_epsilon)
        self._keys = keys
        self._sums = ClientSums(plan, cohort, index, identity, keys)
        self._rounds = OpenRounds(self._sums, plan.hash(), cohort.rides)

    @property
    def dimension(self) -> int:
        """Length of the flat adapter."""
        return self._plan.encoding.dimension

    @property
    def encrypts(self) -> bool:
        """Whether rounds begin with a key of the key holder."""
        return self._cohort.key_holder is not None

    def advertise(
        self, round_number: int, model_hash: bytes, plan_hash: bytes, key: bytes = b""
    ) -> bytes:
        """Begin a round: check that it is a new one under the agreed plan, then show fresh keys.

        Parameters
        ----------
        round_number : int
            Greater than that of any round this session took part in.
        model_hash : bytes
            Hash of the adapter that will be sent for training.
        plan_hash : bytes
            Hash of the plan the server believes in.
        key : bytes, optional
            The key holder's message, where uploads are encrypted.

        Returns
        -------
        bytes
            The signed advertisement.

        Raises
        ------
        ProtocolError
            When the round is not new, the plan or the key is another one, or rounds of this run
            have no advertisements.
        """
        self._rounds.begin(round_number, model_hash, plan_hash, key)
        return self._rounds.current().advertise()

    def advertise_ahead(self, round_number: int, plan_hash: bytes) -> bytes:
        """Show fresh keys for a later round while this one goes on; nothing is spent or read.

        Raises
        ------
        ProtocolError
            When the cohort did not agree to that, the plan is another one, or this client took part
            in that round or has shown keys for it.
        """
        return self._rounds.advertise_ahead(round_number, plan_hash)

    def share_ahead(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split the secrets of that later round among the peers that advertised for it."""
        return self._rounds.share_ahead(advertisements)

    def take_up(self, round_number: int, plan_hash: bytes, model_hash: bytes) -> None:
        """Begin the round whose keys were made ahead, with its model; this one is over.

        Raises
        ------
        ProtocolError
            When there are no keys for exactly this round, or the plan is another one.
        """
        self._rounds.take_up(round_number, plan_hash, model_hash)

    def submit(
        self,
        round_number: int,
        plan_hash: bytes,
        adapter: NDArray[np.float32],
        announcements: Mapping[int, bytes],
        *,
        ahead: bool = False,
    ) -> bytes:
        """Take part in a whole round by one message, for a committee to open.

        Parameters
        ----------
        round_number, plan_hash
            As in `advertise`.
        adapter : ndarray of float32, shape [D]
            The global adapter.
        announcements : mapping of int to bytes
            The members' keys for this round.
        ahead : bool, optional
            Whether they were made before the model was known.

        Returns
        -------
        bytes
            The masked vector and the members' envelopes, signed.

        Raises
        ------
        CareflError
            As `advertise` and `masked` do; ProtocolError in a run without a committee.
        """
        if self._cohort.aggregation != "committee":
            raise ProtocolError(
                "the server asks for a committee's message; compare federation.aggregation"
            )
        self._rounds.begin(round_number, vector_hash(adapter), plan_hash, ahead=ahead)
        try:
            return self.masked(adapter, announcements)
        finally:
            self.close()

    def share(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split this round's secrets among the peers that advertised."""
        return self._rounds.current().share(advertisements)

    def masked(self, adapter: NDArray[np.float32], messages: Mapping[int, bytes]) -> bytes:
        """Compute, protect and mask this client's vector: the one release of a round.

        Parameters
        ----------
        adapter : ndarray of float32, shape [D]
            The global adapter; its hash must be the one announced.
        messages : mapping of int to bytes
            The peers' shares for this client, or the committee's announcements.

        Returns
        -------
        bytes
            The masked vector, signed.

        Raises
        ------
        BudgetExceededError
            When this round would take the ledger over the client's own limit.
        NonFiniteError
            When the task returns NaN or infinity. The round stays in the ledger.
        ProtocolError, CohortError
            When the adapter is not the announced one or too few peers take part.
        """
        total = self._rounds.current()
        if vector_hash(adapter) != self._rounds.model_hash:
            raise ProtocolError("the adapter is not the one whose hash opened the round")
        self._purse.pay(self._rounds.number)
        return total.mask(self._protected(adapter), messages)

    def sign(self, shared: Collection[int], survivors: Collection[int]) -> bytes:
        """Sign who shared and who survived; the secure sum refuses a second, different pair."""
        return self._rounds.current().sign(shared, survivors)

    def unmask(self, signatures: Mapping[int, bytes]) -> bytes:
        """Answer the one request to unmask, then forget every secret of the round."""
        answer = self._rounds.current().unmask(signatures)
        self._rounds.end()
        return answer

    def save(self) -> bytes:
        """Return what the next step needs, for engines that start a process per message.

        It opens for nobody else's identity. The secrets of rounds in it are sealed; FedDyn's
        correction is not, and is as private as the records. Store it before the reply leaves, and
        only the newest: an older one would let a step be answered twice.
        """
        work = self._work.save()
        content = _LENGTH.pack(len(work)) + work + self._rounds.save()
        return self._sums.stamp(content) + content

    def restore(self, saved: bytes) -> None:
        """Go on from what `save` returned.

        Raises
        ------
        ProtocolError
            When it is damaged, or belongs to another client, run or plan.
        """
        self.close()
        stamp, content = saved[:_STAMP], saved[_STAMP:]
        if not same(stamp, self._sums.stamp(content)):
            raise ProtocolError(
                "saved session: it was changed, or is of another client or run; the client sits "
                "this round out"
            )
        end = _LENGTH.size + _LENGTH.unpack_from(content)[0]
        self._work.restore(content[_LENGTH.size : end])
        self._rounds.restore(content[end:])

    def close(self) -> None:
        """Erase the secrets of the round in progress and those made for the next one."""
        self._rounds.close()

    def _protected(self, adapter: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """Compute, encode, add noise, wrap; an empty sample sends noise alone."""
        encoding = self._plan.encoding
        total = self._work.release(adapter, self._rounds.number, self._keys)
        if not np.isfinite(total).all():
            raise NonFiniteError(f"the vector of client {self.index} holds NaN or infinity")
        dither = KeyStream(self._keys.key("dither"))
        integers = encode(total, encoding, self._rounds.current().rotation, dither)
        if self._plan.share_variance > 0:
            noise = KeyStream(self._keys.key("noise"))
            sampler = SkellamSampler(self._plan.share_variance)
            integers += sampler.sample(noise, integers.size)
        return wrap(integers, encoding.bits)
