"""The site's own software: it holds keys, records, ledger and policy, and decides.

Started on the node as ``python -m carefl_secure.deployment.site.agent BUNDLE SOCKET``. It answers
the relay that Flower runs, one message after another, and trusts neither it nor the server.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from carefl_secure.config import Config
from carefl_secure.deployment.flower.relay import ACTIONS, PROPOSE, receive, send
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.policy import check_policy
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.site.accepted_run import Accepted, round_of
from carefl_secure.deployment.site.budget import SiteBudgets, corpus_ledger
from carefl_secure.deployment.site.own_work import Work, own_config
from carefl_secure.deployment.site.proposal import SPENDING, Proposal, cohort_of
from carefl_secure.deployment.site.site_log import SiteLog
from carefl_secure.errors import CareflError, ModelError, PolicyError, ProtocolError, RunError
from carefl_secure.federation import quiet_flower
from carefl_secure.federation.aggregation.base import ClientSetup, Helper
from carefl_secure.federation.aggregation.registry import find_protocol
from carefl_secure.federation.client.app import answer
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.error_codes import LOST, refusal, seal
from carefl_secure.federation.transport.local_grid import ProgramFaults
from carefl_secure.federation.transport.messages import pack
from carefl_secure.noise import KeySource, SystemKeySource
from carefl_secure.privacy import Ledger

_ROLE = "query.role"
_CONTINUES = ("train.masked", "query.committee_open")  # they name a round, but need its secrets
_PREFETCH = "_prefetch"  # ends the steps that make keys for a later round
_STALLED = 60  # seconds after which a relay that neither sends nor reads is disconnected


class Agent:
    """Answers for one site.

    ``ledger`` is that of the corpus, by default in the bundle. Predictable noise is allowed only in a ``rehearsal``, a
    run of one machine with itself, whose drawn keys are kept in the folder ``keys``.

    Guarantees
    ----------
    No step of a round is answered before a proposal passed the policy, the site's own plan and base
    hash equal the proposed ones, and the roster is the bundle's; a restarted agent checks all of
    this again before it goes on. A proposal is accepted once and within its time. No round beyond
    the signed plan is taken part in, and none is begun twice under one proposal, also by the next
    agent: its number is on disk before its charge and before its first reply.

    No answer but the masked vector depends on a record: a proposal is answered before one is
    opened, and whatever is refused for a reason that records or the ledger may decide gives one
    and the same refusal. Its reason stays in ``refusals.log``. When a vector is ready depends on
    the records, and is seen. This assumes that policy and settings are public.
    """

    def __init__(
        self, bundle: SiteBundle, *, ledger: Path | None = None, rehearsal: bool = False, keys: Path | None = None
    ) -> None:
        self.bundle = bundle
        self._policy = bundle.read_policy()
        self._identity = read_identity(bundle.path / "identity.key")
        self._ledger, self._rehearsal, self._keys_kept = ledger, rehearsal, keys
        self._accepted = Accepted(bundle.path / "accepted.json")
        self._log = SiteLog(bundle.path)
        self._rounds = 0
        self._party: ClientSession | Helper | None = None
        self._budgets: SiteBudgets | None = None

    def answer(self, head: Mapping[str, Any], content: RecordDict) -> tuple[dict[str, Any], list[RecordDict]]:
        """Answer one message of the relay."""
        action, group = str(head.get("action"))[:40], str(head.get("group"))[:40]
        try:
            if time.time() >= self.bundle.expires:
                raise PolicyError("the bundle has expired", "expired")
            if action == PROPOSE:
                reply = self._propose(content)
            elif self._sits_out(action, content):
                self._log.answered(action, group, LOST)
                return {"code": LOST, "reason": "the agent was started again in this round"}, []
            else:
                reply = self._step(action, content)
        except CareflError as error:
            return self._refused(action, group, error), []
        except OSError as error:
            return self._refused(action, group, RunError(str(error))), []
        self._log.answered(action, group, 0)
        return {}, [reply]

    def serve(self, place: Path) -> None:
        """Answer forever on a Unix socket for its owner and group alone; replace a stale one."""
        place.unlink(missing_ok=True)
        with Listener(str(place), "AF_UNIX") as listener:
            place.chmod(0o660)
            while True:
                # A relay that hangs up or stalls harms nobody but itself.
                with contextlib.suppress(OSError, EOFError), listener.accept() as link:
                    try:
                        head, content = read_message(link)
                    except ProtocolError as error:
                        send(link, self._refused("unreadable", "", error))
                    else:
                        send(link, *self.answer(head, content))

    def close(self) -> None:
        """Erase the secrets of a round in progress."""
        if self._party is not None:
            self._party.close()
        self._party = self._budgets = None

    def _propose(self, content: RecordDict) -> RecordDict:
        """Accept a run, or raise; where its submitter is on the list, an earlier run ends."""
        self._policy = self.bundle.read_policy()
        proposal, submitter = Proposal.read(content)
        if submitter.hex() not in self._policy.submitters:
            raise PolicyError("the submitter is not on the list", "submitter")
        proposal.check_time()
        self._accepted.admit(content, proposal.number)
        self.close()
        try:
            plan = self._take_up(proposal, submitter)
        except CareflError:
            self._accepted.forget()
            raise
        place = self.bundle.index + len(self.bundle.roster.clients) * (self.bundle.role == "helper")
        return pack(plan=plan.hash(), place=place)

    def _sits_out(self, action: str, content: RecordDict) -> bool:
        """Tell whether a step belongs to a round whose secrets died with an earlier agent."""
        again = self._party is None and self._accepted.proposal is not None
        later = round_of(content) is None or action in _CONTINUES
        return again and action in ACTIONS and action != _ROLE and later

    def _step(self, action: str, content: RecordDict) -> RecordDict:
        """Take one step of the run that was agreed to."""
        accepted, number = self._accepted.proposal, round_of(content)
        if action not in ACTIONS or accepted is None:
            raise ProtocolError("no proposed run was accepted here, so no step is answered")
        if number is not None and action not in _CONTINUES:
            self._accepted.check(number)
        if self._party is None:
            self._take_up(*Proposal.read(accepted))
        if number is not None and number > self._rounds:
            raise ProtocolError(
                f"round {number} is beyond the signed plan, which ends with round {self._rounds}; propose another run"
            )
        if action in SPENDING and self._budgets is not None:
            self._budgets.check_round()
        if number is not None and action in SPENDING:
            self._accepted.begun(number)
        with ProgramFaults(self.bundle.name):
            if self._party is None:
                raise ProtocolError("the accepted run was not taken up")
            reply = answer(self._party, action, content)
        if number is not None and not action.endswith(_PREFETCH):
            self._accepted.begun(number)
        return reply

    def _take_up(self, proposal: Proposal, submitter: bytes) -> RunPlan:
        """Check a proposal against everything that is the site's own, and get ready for its run."""
        from carefl_secure.runs.plan_from_config import plan_with

        config = own_config(proposal, self.bundle, rehearsal=self._rehearsal)
        cohort = cohort_of(config, proposal.run, self.bundle.roster, proposal.base_hash)
        if config.federation.public_records is None:
            raise ProtocolError("the proposal does not declare the number of records")
        plan = plan_with(config, config.federation.public_records, proposal.dimension)
        # What the policy forbids is refused before a model is loaded.
        check_policy(self._policy, plan, cohort, submitter)
        if plan.hash() != proposal.plan_hash:
            raise ProtocolError("the proposed plan is not the one that follows from the settings")
        self._log.run, self._rounds = proposal.run, plan.privacy.rounds
        keys = self._keys(config)
        if self.bundle.role == "client":
            self._party = self._client(config, plan, cohort, keys, proposal.charged.get(self.bundle.name, {}))
        else:
            setup = ClientSetup(plan, cohort, self.bundle.index, self._identity, keys)
            self._party = find_protocol(cohort.aggregation).helper(setup)
        return plan

    def _client(
        self, config: Config, plan: RunPlan, cohort: Cohort, keys: KeySource, charged: Mapping[str, int]
    ) -> ClientSession:
        bundle = self.bundle
        work = Work(config, plan, bundle.index, bundle.data is not None, self._log)
        if work.base_hash != cohort.base_hash:
            raise ModelError("the base model, adapter or code version is not the proposed one")
        # A ledger of the site belongs to its name, which outlives its place in a roster.
        path, owner = self._ledger, str(bundle.index)
        if path is None:
            path, owner = corpus_ledger(bundle), bundle.name
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(path, {"client": owner})
        ledger.verify()
        self._budgets = SiteBudgets(self._policy, bundle.path / "ledgers", ledger, plan, cohort)
        self._budgets.check_rollback(charged)
        self._budgets.check_run()
        limit = self._policy.max_epsilon_per_corpus
        setup = ClientSetup(plan, cohort, bundle.index, self._identity, keys)
        most = min(limit, config.privacy.max_epsilon or limit)
        return ClientSession(setup, work.task, ledger, max_epsilon=most, memory=path.parent)

    def _keys(self, config: Config) -> KeySource:
        if not config.unsafe_deterministic_noise:
            return SystemKeySource()
        from carefl_secure.runs.build import key_source

        helper = self.bundle.role == "helper"
        source = key_source(config, kept=self._keys_kept)
        return source(self.bundle.index + helper * config.federation.clients)

    def _refused(self, action: str, group: str, error: CareflError) -> dict[str, Any]:
        """Keep the reason here and return what may be said of it."""
        self._log.reason(error)
        helper = self._party if isinstance(self._party, Helper) else None
        said = seal(refusal(error, "client" if helper is None else helper.party))
        self._log.answered(action, group, said.code)
        return {"code": said.code, "reason": said.reason}


def read_message(link: Connection) -> tuple[Mapping[str, Any], RecordDict]:
    """Read a message, or drop a stalled peer; `ProtocolError` if malformed, `OSError` or `EOFError` if it is gone."""
    with socket.fromfd(link.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            plain.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", _STALLED, 0))
    try:
        head, contents = receive(link)
        (content,) = contents
        if not isinstance(head, dict):
            raise TypeError(type(head).__name__)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(
            "what came over the agent's socket is no message of a relay; only Flower's SuperNode "
            "of this site should reach it"
        ) from error
    return head, content


def _serve_or_end(agent: Agent, place: Path) -> None:
    """Serve; a fault ends the whole process, so that whoever watches it learns of it."""
    try:
        agent.serve(place)
    finally:
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    """Serve one bundle until killed, or until standard input ends where that was asked for."""
    parser = argparse.ArgumentParser()
    for name in ("bundle", "socket", "--ledger", "--keys"):
        parser.add_argument(name, type=Path)
    for name in ("--rehearsal", "--until-eof"):
        parser.add_argument(name, action="store_true")
    words = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    bundle = SiteBundle.open(words.bundle, half="agent")
    agent = Agent(bundle, ledger=words.ledger, rehearsal=words.rehearsal, keys=words.keys)
    with quiet_flower():
        if not words.until_eof:
            agent.serve(words.socket)
        threading.Thread(target=_serve_or_end, args=(agent, words.socket), daemon=True).start()
        sys.stdin.buffer.read()  # ends with the process that started this one
        os._exit(0)  # also where records are still being read


if __name__ == "__main__":
    main()
