"""One actor of a simulation on Ray: it answers for whichever client the next message is for."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from carefl_secure.config import Config
from carefl_secure.errors import CareflError, ConfigError, EngineError, ModelError, ProtocolError
from carefl_secure.federation.aggregation.base import ClientSetup
from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.in_process import client_ledger, keep_refusal, storage_key
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.transport.error_codes import refusal
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.progress import SilentReporter
from carefl_secure.strict_json import load_json

Work = Callable[[Stage, bytes], Sequence[LocalTask]]
"""Makes the tasks of all clients from a run's stage and the hash of the agreed base model."""

FAULT = refusal(EngineError(""))
"""The reply to the server for a fault in an actor; the traceback stays in the run folder."""


@dataclass(frozen=True)
class Order:
    """All that an actor needs to answer for any client; written to a file of the run's owner.

    ``spec`` has absolute paths and no tasks: an actor makes its own with ``work``. ``identities`` are the clients'
    private Ed25519 keys, 32 bytes each, which one process makes in a simulation. Relative paths of the configuration
    start at ``directory``; no other account can read the folder ``scratch``.
    """

    spec: RunSpec
    cohort: Cohort
    identities: tuple[bytes, ...]
    work: Work
    directory: Path
    scratch: Path

    @property
    def file(self) -> Path:
        """Where actors read the order."""
        return self.scratch / "order"

    @property
    def log(self) -> Path:
        """Where faults of actors are written in full."""
        return self.spec.folder.path / "logs" / "ray.log"


class ActorApp(ClientApp):
    """The client app that Flower hands to its Ray actors: the path of a pickled `Order`.

    Flower sends the app along with every message, so it must be small. Model, features and the
    tasks of all clients are made at an actor's first message and kept.

    Guarantees
    ----------
    A refusal leaves as a number with a fixed sentence, and so does a fault in the program: no
    exception and no text of one goes through Flower or Ray. A saved session is answered from once:
    an older one than the newest is refused, also where it was answered by another actor.
    """

    def __init__(self, order: Path) -> None:
        super().__init__()
        self._order = order

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one message for the client whose context this is."""
        reply = Message(FAULT, reply_to=message)
        with ExitStack() as faults:
            faults.push(self._keep_fault)
            try:
                reply = _clients_of(self._order).answer(message, context)
            except CareflError as error:
                reply = Message(refusal(error), reply_to=message)
        return reply

    def _keep_fault(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Write whatever was not raised on purpose into the run's own log, and let the reply say so."""
        if not isinstance(error, Exception):
            return False
        log = _read(self._order).log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.writelines(traceback.format_exception(error))
        return True


class _Clients:
    """All clients of a run, as one actor can play them."""

    def __init__(self, order: Order) -> None:
        os.chdir(order.directory)
        (order.scratch / "actors").mkdir(exist_ok=True)
        (order.scratch / "actors" / str(os.getpid())).touch()  # so that a stop need not wait
        self._order = order
        self._tasks = order.work(order.spec.stage, order.cohort.base_hash)
        if len(self._tasks) != len(order.identities):
            raise ConfigError(f"{len(self._tasks)} tasks for {len(order.identities)} clients")
        self._app = build_client_app(self._session, self._refused, keep_state=True)
        self._marks = order.scratch / "marks"
        self._marks.mkdir(exist_ok=True)
        self._drawn: Counter[str] = Counter()
        self._opened: ClientSession | None = None

    def answer(self, message: Message, context: Context) -> Message:
        """Answer from the newest saved session, and remember what is the newest now."""
        mark = self._marks / f"{context.node_config.get('partition-id')}.json"
        known = load_json(mark.read_text()) if mark.exists() else {"session": "", "drawn": {}}
        if _digest(context.state) != known["session"]:
            raise ProtocolError("this session is not the newest; an answered step is not repeated")
        self._drawn = Counter(known["drawn"])
        try:
            reply = self._app(message, context)
        finally:
            if self._opened is not None:
                self._opened.close()
                self._opened = None
        new = mark.with_suffix(".new")
        new.write_text(json.dumps({"session": _digest(context.state), "drawn": self._drawn}))
        new.replace(mark)  # before the reply leaves
        return reply

    def _session(self, index: int) -> ClientSession:
        order, spec = self._order, self._order.spec
        if not 0 <= index < len(order.identities):
            raise ProtocolError(f"partition {index} is no client of this run")
        keys = spec.key_source(index)
        if isinstance(keys, DeterministicKeySource):
            keys = _Continued(keys, self._drawn)
        identity = Ed25519PrivateKey.from_private_bytes(order.identities[index])
        self._opened = ClientSession(
            ClientSetup(spec.plan, order.cohort, index, identity, keys),
            self._tasks[index],
            client_ledger(spec, index),
            max_epsilon=spec.max_epsilon,
            memory=spec.folder.client(index),
            storage_key=storage_key(spec, index),
            last_round=spec.stage.offset + spec.plan.privacy.rounds,
        )
        return self._opened

    def _refused(self, index: int, error: CareflError) -> None:
        keep_refusal(self._order.spec.folder.client(index), error)


class _Continued:
    """Seeded keys, for tests only, that go on from the ``drawn`` count of keys per label."""

    def __init__(self, source: DeterministicKeySource, drawn: Counter[str]) -> None:
        self._source = source
        self._drawn = drawn
        for label, count in drawn.items():
            for _ in range(count):
                source.key(label)

    def key(self, label: str) -> bytes:
        """Return the next key under a label."""
        self._drawn[label] += 1
        return self._source.key(label)


def tasks_of(config: Config, stage: Stage, base_hash: bytes) -> Sequence[LocalTask]:
    """Return all clients' tasks in one stage, the `Work` of a run; `ModelError` for another base than agreed."""
    # torch is imported here, where work begins, and not by whoever only reads an order.
    from carefl_secure.runs.build import base_hash_of, client_tasks, stage_scorer
    from carefl_secure.runs.captions import load_contexts
    from carefl_secure.runs.staged_corpora import load_stages, stage_configs

    reporter = SilentReporter()
    every, place = load_stages(config, reporter), stage.number - 1
    own, corpora = stage_configs(config)[place], every[place]
    contexts = load_contexts(own, corpora, reporter)
    scorer = stage_scorer(config, every, stage, reporter)
    if base_hash_of(scorer.adapter.base.digest, config, stage) != base_hash:
        raise ModelError("an actor loads another base model than the run began with")
    return client_tasks(own, stage.plan, scorer, corpora, contexts, reporter)


def _read(path: Path) -> Order:
    order = pickle.loads(path.read_bytes())
    if not isinstance(order, Order):
        raise EngineError(f"{path} holds no order")
    return order


@functools.lru_cache(maxsize=1)
def _clients_of(path: Path) -> _Clients:
    return _Clients(_read(path))


def _digest(state: RecordDict) -> str:
    """Return a hash over the saved session in a context; empty where there is none."""
    saved = [
        value for record in state.config_records.values() for value in record.values() if isinstance(value, bytes)
    ]
    return hashlib.sha256(b"".join(saved)).hexdigest() if saved else ""
