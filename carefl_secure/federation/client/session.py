"""One client's side of a run: what it checks, what it spends, what it releases.

No Flower type appears here. The order inside `release` matters: all that can be checked without a
record is checked, then the ledger is written, and only then does the client look at a record.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.aggregation.base import ClientSetup
from carefl_secure.federation.client.banded_state import BandedState
from carefl_secure.federation.client.round_state import OpenRounds, RoundBudget
from carefl_secure.federation.client.sealed_files import SealedFiles
from carefl_secure.federation.local_update.choice import local_work
from carefl_secure.federation.local_update.feddyn_state import client_file
from carefl_secure.federation.local_update.task import DeferredTask, LocalTask
from carefl_secure.federation.transport.messages import vector_hash
from carefl_secure.noise import KeyStream, SkellamSampler
from carefl_secure.privacy import Ledger
from carefl_secure.secagg import encode, wrap
from carefl_secure.secagg.primitives.crypto import derive, pack, raw_identity, same

Adapter = NDArray[np.float32]
_SAVED = struct.Struct("<Id")  # length of the local work's state, norm of the last adapter
_STAMP = 32

# An adapter with a larger entry, or that grew by more since the round before, is not trained on.
_LARGEST_ENTRY = 1e4
_LARGEST_GROWTH = 100.0


class ClientSession:
    """A client for the length of one run.

    Parameters
    ----------
    setup : ClientSetup
        The client's own copies of plan and cohort, not the server's; its fresh keys never come from the run's seed.
    ledger : Ledger
        The client's own account, kept across runs on the same records.
    max_epsilon : float, optional
        The most that all runs in the ledger may spend; the plan's target by default.
    memory : Path, optional
        Folder for what the client keeps between rounds of this run (FedDyn, banded noise).
    storage_key : bytes, optional
        Secret that seals kept noise and groups; the identity's private key by default. It must last as long as they.
    last_round : int, optional
        The last round number of the agreed plan; the plan's number of rounds by default. The first follows from it.

    Guarantees
    ----------
    Whatever leaves the client in a round is a function of its masked vector and of messages that do not depend on its
    records. The vector is masked, carries this client's share of the noise, and its event is in the ledger, on disk,
    before the records are read. It rests on unpredictable keys, on ``task`` clipping as it promises, and on the secure
    sum's own assumptions; on all but the last where each client's vector is private by itself (trust none).

    In a protected run nothing after the charge refuses or fails for a reason that depends on a record: a record with a
    loss or gradient that is not finite contributes zero, and so does the client where its task fails
    (`LocalWork.release`); the noised vector goes out, and only the client's own log tells. No round outside the agreed
    plan is taken part in, and no more attempts than it has rounds are charged, whatever the ledger's limit would
    allow. An attempt that ends before the charge has read no record and is free; each number is begun once.
    """

    def __init__(
        self,
        setup: ClientSetup,
        task: LocalTask | DeferredTask,
        ledger: Ledger,
        *,
        max_epsilon: float | None = None,
        memory: Path | None = None,
        storage_key: bytes | None = None,
        last_round: int | None = None,
    ) -> None:
        plan, cohort, index = setup.plan, setup.cohort, setup.index
        if cohort.roster[index] != setup.identity.public_key().public_bytes_raw():
            raise ProtocolError(
                f"client {index} does not hold the key that the roster names for it; "
                "compare the roster with the client's key file"
            )
        if task.dimension != plan.encoding.dimension:
            raise ProtocolError(
                f"client {index} has an adapter of {task.dimension} entries, the plan "
                f"{plan.encoding.dimension}; the models differ"
            )

        def kept(kind: str) -> Path | None:
            return memory and client_file(memory, kind, cohort.run, plan.hash(), index)

        self._work = local_work(plan, task, index, kept("feddyn-{}.bin"))
        self._banded: BandedState | None = None
        if plan.privacy.correlation is not None:
            files, path = None, kept("banded-{}")
            if path is not None:
                place = (cohort.run, plan.hash(), pack(index))
                files = SealedFiles(path, storage_key or raw_identity(setup.identity), place, setup.keys)
            self._banded = BandedState(plan, setup.keys, files, cohort.aggregation != "committee")
            self._work.members = self._banded.members
        self.index, self._plan, self._cohort, self._keys = index, plan, cohort, setup.keys
        self._budget = RoundBudget(ledger, plan, cohort, max_epsilon)
        self._rounds, self._identity = OpenRounds(setup), setup.identity
        last = plan.privacy.rounds if last_round is None else last_round
        self._numbers = range(last - plan.privacy.rounds + 1, last + 1)
        self._last_norm = -1.0  # not known yet

    @property
    def dimension(self) -> int:
        """Length of the flat adapter."""
        return self._plan.encoding.dimension

    @property
    def encrypts(self) -> bool:
        """Whether rounds begin with a key of the key holder."""
        return self._cohort.key_holder is not None

    def advertise(self, number: int, plan_hash: bytes, key: bytes = b"") -> bytes:
        """Begin a round: check that it is new under the agreed plan; return a signed advertisement.

        ``key`` is the key holder's message, where uploads are encrypted. Raises ProtocolError when ``number`` is not
        above that of every earlier round, the plan or the key is another one, or this run has no advertisements.
        """
        self._check_number(number)
        return self._rounds.begin(number, plan_hash, key).advertise()

    def share(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split this round's secrets among the clients that advertised."""
        return self._rounds.current().share(advertisements)

    def advertise_prefetch(self, number: int, plan_hash: bytes) -> bytes:
        """Show fresh keys for a later round; nothing is spent or read. Raises as `OpenRounds.advertise_prefetch`."""
        self._check_number(number)
        return self._rounds.advertise_prefetch(number, plan_hash)

    def share_prefetch(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split the secrets of that later round among the clients that advertised for it."""
        return self._rounds.share_prefetch(advertisements)

    def submit(self, number: int, plan_hash: bytes, adapter: Adapter, announcements: Mapping[int, bytes]) -> bytes:
        """Take part in a whole round by one message, for a committee to open.

        ``announcements`` holds the members' keys for this round. Returns the masked vector and the members' envelopes,
        signed. Raises what `advertise` and `release` raise; ProtocolError in a run without a committee.
        """
        if self._cohort.aggregation != "committee":
            raise ProtocolError("the server asks for a committee's message; compare federation.aggregation")
        self._check_number(number)
        self._rounds.begin(number, plan_hash)
        try:
            return self.release(number, plan_hash, adapter, announcements)
        finally:
            self.close()

    def release(self, number: int, plan_hash: bytes, adapter: Adapter, messages: Mapping[int, bytes]) -> bytes:
        """Compute, protect and mask this client's vector: the one release of a round, signed.

        The keys of the round are bound to the hash of ``adapter``, float32 of shape [D], once. ``messages`` are the
        other clients' shares for this one, or the committee's announcements. ProtocolError or CohortError is raised
        where the round, the plan or a message is not as agreed, or too few clients take part; BudgetExceededError
        where the rounds of the plan are all charged, or this one would take the ledger over the client's own limit.
        """
        # Check the agreed round and plan; open and check what the others sent.
        part = self._rounds.enter(number, plan_hash, vector_hash(adapter))
        part.receive(messages)
        self._check_adapter(adapter)

        # Charge the ledger, on disk, before any record is read.
        if self._banded is not None:
            self._banded.open(self._budget.charged())
        self._budget.charge(number)

        # Sample, compute, encode, add noise; then mask and sign.
        return part.mask(self._protected(adapter))

    def _protected(self, adapter: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        plan, encoding, number = self._plan, self._plan.encoding, self._rounds.number

        # Sample records and sum their clipped gradients, or take local steps; zero if that fails.
        total = self._work.release(adapter, number, self._keys)

        # Encode as integers, add this client's share of the noise, wrap to words.
        rotation = self._cohort.rotation(plan, number, vector_hash(adapter))
        integers = encode(total, encoding, rotation, KeyStream(self._keys.key("dither")))
        if plan.share_variance > 0:
            sampler = SkellamSampler(plan.share_variance)
            fresh = sampler.sample(KeyStream(self._keys.key("noise")), integers.size)
            integers += fresh if self._banded is None else self._banded.noise(number, fresh)
        return wrap(integers, encoding.bits)

    def _check_number(self, number: int) -> None:
        if number not in self._numbers:
            raise ProtocolError(
                f"round {number} is beyond the agreed plan, whose rounds are "
                f"{self._numbers.start} to {self._numbers[-1]}; agree on another run"
            )

    def _check_adapter(self, adapter: NDArray[np.float32]) -> None:
        """Refuse an adapter that no honest step leads to, before anything is charged or sampled."""
        largest = float(np.abs(adapter).max(initial=0.0))
        norm = float(np.linalg.norm(adapter.astype(np.float64)))
        known = math.inf if self._last_norm < 0 else max(self._last_norm, 1.0)
        if not largest <= _LARGEST_ENTRY or norm > _LARGEST_GROWTH * known:
            raise ProtocolError(
                "the adapter holds NaN, infinity or entries far beyond those of the round before; "
                "nothing was charged: look at the server's learning rate"
            )
        self._last_norm = norm

    def sign(self, shared: Collection[int], survivors: Collection[int]) -> bytes:
        """Sign who shared and who survived; the secure sum refuses a second, different pair."""
        signature = self._rounds.current().sign(shared, survivors)
        if self._banded is not None and self.index in survivors:
            self._banded.include()
        return signature

    def unmask(self, signatures: Mapping[int, bytes]) -> bytes:
        """Answer the one request to unmask, then forget every secret of the round."""
        answer = self._rounds.current().unmask(signatures)
        self._rounds.end()
        return answer

    def save(self) -> bytes:
        """Return what the next step needs, for engines that start a process per message.

        Only the same identity can open it. The secrets of rounds in it are sealed; FedDyn's correction is not, and is
        as private as the records. Store it before the reply leaves, and only the newest: with an older one a step is
        answered twice.
        """
        work = self._work.save()
        content = _SAVED.pack(len(work), self._last_norm) + work + self._rounds.save()
        return self._stamp(content) + content

    def _stamp(self, content: bytes) -> bytes:
        """Return 32 bytes that nobody but this client, in this run, can give for some content."""
        place = (self._cohort.run, self._plan.hash(), content)
        return derive(raw_identity(self._identity), b"saved session", *place)

    def restore(self, saved: bytes) -> None:
        """Go on from what `save` gave; ProtocolError when it is damaged, or of another client, run or plan."""
        self.close()
        stamp, content = saved[:_STAMP], saved[_STAMP:]
        if not same(stamp, self._stamp(content)):
            raise ProtocolError("saved session: changed, or of another client or run; the client sits this round out")
        length, self._last_norm = _SAVED.unpack_from(content)
        content = content[_SAVED.size :]
        self._work.restore(content[:length])
        self._rounds.restore(content[length:])

    def close(self) -> None:
        """Erase the secrets of the round in progress and prefetched ones."""
        self._rounds.close()
