"""The site's own software: it holds keys, records, ledger and policy, and decides.

Started on the node as ``python -m carefl_secure.federation.engines.agent KIT SOCKET``. It answers
the relay that Flower runs, one message after another, and trusts neither it nor the server.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict

from carefl_secure.config import Config
from carefl_secure.config.load import build_config, flatten
from carefl_secure.errors import CareflError, ModelError, PolicyError, ProtocolError
from carefl_secure.federation._flwr_env import quiet_flower
from carefl_secure.federation.client import build_client_app
from carefl_secure.federation.engines.certificates import read_identity
from carefl_secure.federation.engines.kit import Kit
from carefl_secure.federation.engines.proposal import Proposal, cohort_of
from carefl_secure.federation.engines.relay import ACTIONS, PROPOSE, receive, send
from carefl_secure.federation.grid import FIRST_NODE, LocalGrid
from carefl_secure.federation.helpers import Helper, HolderSession, MemberSession
from carefl_secure.federation.messages import pack
from carefl_secure.federation.planning import RunPlan
from carefl_secure.federation.policy import check_policy, read_policy
from carefl_secure.federation.refusal import refusal
from carefl_secure.federation.session import ClientSession
from carefl_secure.federation.task import LocalTask
from carefl_secure.model.task_prompts import TASK_PROMPTS
from carefl_secure.noise import KeySource, SystemKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.progress import SilentReporter

__all__ = ["Agent", "Work", "refuse_paths"]


def refuse_paths(config: Config, *, own_data: bool) -> None:
    """Refuse a proposal that would have a site open a file of the proposer's choosing.

    Parameters
    ----------
    config : Config
        As proposed, with the site's own settings put in.
    own_data : bool
        Whether ``data.source`` is the site's own word.

    Raises
    ------
    PolicyError
        Clause ``path``: the base model is neither the embedded one nor a hub id, the prompt none of
        those that come with the package, or the records are neither drawn nor the site's own.
    """
    base = config.model.base
    hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", base) and not Path(base).exists()
    if base != "embedded" and not hub:
        raise PolicyError("the base model is named by a path; name a hub id", "path")
    if config.model.prompt not in TASK_PROMPTS:
        raise PolicyError("the prompt is named by a path; name one of the package's", "path")
    if not own_data and not config.data.synthetic:
        raise PolicyError("the records are named by a path, and the kit names none", "path")


class Work:
    """What a site computes with: its own plan, base hash and task for a proposed run.

    Parameters
    ----------
    config : Config
        As proposed, with the site's own paths.
    index : int
        Place among the clients.
    own_data : bool
        Whether all records of ``data.source`` are this site's, or only its share.
    """

    def __init__(self, config: Config, index: int, own_data: bool) -> None:
        # torch is imported here, where a run begins, and in no other part of the node.
        from carefl_secure.federation.setup import site_work

        self.plan, self.base_hash, self.task = site_work(
            config, None if own_data else index, SilentReporter()
        )


class Agent:
    """Answers for one site.

    Parameters
    ----------
    kit : Kit
    ledger : Path, optional
        The ledger of the corpus; in the kit, one per corpus, by default.
    rehearsal : bool, optional
        Allow predictable noise, and only then: for runs of one machine with itself.

    Guarantees
    ----------
    No step of a round is answered before a proposal passed the policy, the site's own plan and
    base hash equal the proposed ones, and the roster is the kit's. A refusal leaves as a number
    with a fixed sentence; its text stays in ``refusals.log``. The log holds actions, rounds and
    outcomes, and nothing computed from a record.
    """

    def __init__(self, kit: Kit, *, ledger: Path | None = None, rehearsal: bool = False) -> None:
        self.kit = kit
        self._policy = read_policy(kit.path / "policy.yaml")
        self._identity = read_identity(kit.path / "identity.key")
        self._ledger = ledger
        self._rehearsal = rehearsal
        self._grid: LocalGrid | None = None
        self._party: ClientSession | Helper | None = None
        self._submitter = b""

    def answer(
        self, head: dict[str, Any], content: RecordDict
    ) -> tuple[dict[str, Any], list[RecordDict]]:
        """Answer one message of the relay."""
        action, group = str(head.get("action")), str(head.get("group"))
        try:
            if time.time() >= self.kit.expires:
                raise PolicyError("the kit has expired", "expired")
            if action == PROPOSE:
                reply: Message | RecordDict = self._propose(content)
            elif action not in ACTIONS or self._grid is None:
                raise ProtocolError("no proposed run was accepted here, so no step is answered")
            else:
                sent = Message(content, FIRST_NODE, action, group_id=group)
                (reply,) = self._grid.send_and_receive([sent])
        except CareflError as error:
            self._keep(0, error)
            said = refusal(error)
            self._log(action, group, said.code)
            return {"code": said.code, "reason": said.reason}, []
        if isinstance(reply, Message):
            if reply.has_error():
                self._log(action, group, reply.error.code)
                return {"code": reply.error.code, "reason": reply.error.reason}, []
            reply = reply.content
        self._log(action, group, 0)
        return {}, [reply]

    def serve(self, socket: Path) -> None:
        """Answer on a Unix socket for ever."""
        with Listener(str(socket), "AF_UNIX") as listener:
            while True:
                # A relay that hangs up or stammers harms nobody but itself.
                with (
                    contextlib.suppress(OSError, EOFError, ValueError, KeyError),
                    listener.accept() as link,
                ):
                    head, contents = receive(link)
                    if len(contents) == 1:
                        send(link, *self.answer(head, contents[0]))

    def close(self) -> None:
        """Erase the secrets of a round in progress."""
        if self._party is not None:
            self._party.close()
        self._party = self._grid = None

    def _propose(self, content: RecordDict) -> RecordDict:
        """Accept a run, or raise; an earlier run ends either way."""
        self.close()
        proposal, submitter = Proposal.read(content)
        if submitter.hex() not in self._policy.submitters:
            raise PolicyError("the submitter is not on the list", "submitter")
        config = self._own(proposal)
        cohort = cohort_of(config, proposal.run, self.kit.roster, proposal.base_hash)
        if self.kit.role == "helper":
            from carefl_secure.federation.setup import plan_with

            plan = plan_with(config, config.federation.public_records or 0, proposal.dimension)
            task = None
        else:
            work = Work(config, self.kit.index, self.kit.data is not None)
            plan, task = work.plan, work.task
            if work.base_hash != proposal.base_hash:
                raise ModelError("the base model, adapter or code version is not the proposed one")
        if plan.hash() != proposal.plan_hash:
            raise ProtocolError("the proposed plan is not the one that follows from the settings")
        check_policy(self._policy, plan, cohort, submitter)
        keys = self._keys(config)
        if task is None:
            party: ClientSession | Helper = (
                HolderSession(self.kit.index, self._identity, plan, cohort)
                if cohort.key_holder is not None
                else MemberSession(self.kit.index, self._identity, plan, cohort, keys)
            )
        else:
            party = self._client(config, plan, cohort, task, keys)
        self._party = party
        session = party if isinstance(party, ClientSession) else None
        helper = party if isinstance(party, Helper) else None

        def sessions(_: int) -> ClientSession:
            if session is None:
                raise ProtocolError("a helper was asked for a client's step")
            return session

        app = build_client_app(sessions, self._keep, helpers=lambda _: helper)
        self._grid = LocalGrid(app, 1)
        clients = len(self.kit.roster.clients)
        place = self.kit.index + clients * (self.kit.role == "helper")
        return pack(plan=plan.hash(), place=place)

    def _own(self, proposal: Proposal) -> Config:
        """Read the proposed settings, with every path in them replaced by the site's own."""
        import yaml

        settings = flatten(yaml.safe_load(proposal.config))
        if settings.get("unsafe_deterministic_noise") and not self._rehearsal:
            raise PolicyError("the run asks for predictable noise", "unprotected")
        if not self._rehearsal:
            own = {"data.cache_dir": None, "privacy.ledgers": None, "model.context_cache": None}
            settings |= {key: value for key, value in own.items() if key in settings}
        if self.kit.data is not None:
            settings["data.source"] = self.kit.data
        config = build_config(settings)
        if not self._rehearsal:
            refuse_paths(config, own_data=self.kit.data is not None)
        return config

    def _client(
        self, config: Config, plan: RunPlan, cohort: Any, task: LocalTask, keys: KeySource
    ) -> ClientSession:
        path = self._ledger
        if path is None:
            corpus = hashlib.sha256((self.kit.data or "share").encode()).hexdigest()[:16]
            path = self.kit.path / "ledgers" / f"{corpus}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(path, {"client": str(self.kit.index)})
        ledger.recover()
        self._check_total(plan, path, ledger)
        limit = self._policy.max_epsilon_per_corpus
        return ClientSession(
            self.kit.index,
            self._identity,
            plan,
            cohort,
            task,
            ledger,
            keys,
            max_epsilon=min(limit, config.privacy.max_epsilon or limit),
            memory=path.parent / "correction.bin",
        )

    def _check_total(self, plan: RunPlan, path: Path, ledger: Ledger) -> None:
        """Add up what all corpora of this site have spent and this run may spend."""
        if plan.privacy.target_epsilon is None:
            return
        delta = plan.privacy.delta
        spent = sum(
            Ledger(other).epsilon(delta)
            for other in (self.kit.path / "ledgers").glob("*.jsonl")
            if other.resolve() != path.resolve()
        )
        if path.exists():
            spent += ledger.epsilon(delta)
        if spent + plan.privacy.target_epsilon > self._policy.max_epsilon_total:
            raise PolicyError("the run would take the site over its total epsilon", "total")

    def _keys(self, config: Config) -> KeySource:
        if not config.unsafe_deterministic_noise:
            return SystemKeySource()
        from carefl_secure.federation.setup import key_source

        helper = self.kit.role == "helper"
        return key_source(config)(self.kit.index + helper * config.federation.clients)

    def _keep(self, _: int, error: CareflError) -> None:
        with (self.kit.path / "refusals.log").open("a") as file:
            file.write(f"{type(error).__name__}: {error}\n")

    def _log(self, action: str, group: str, code: int) -> None:
        line = {"time": round(time.time(), 3), "action": action, "round": group, "code": code}
        with (self.kit.path / "agent.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def _serve_or_end(agent: Agent, socket: Path) -> None:
    """Serve; a fault ends the whole process, so that whoever watches it learns of it."""
    try:
        agent.serve(socket)
    finally:
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    """Serve one kit until killed, or until standard input ends where that was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kit", type=Path)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--rehearsal", action="store_true")
    parser.add_argument("--until-eof", action="store_true")
    words = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    agent = Agent(Kit.open(words.kit), ledger=words.ledger, rehearsal=words.rehearsal)
    with quiet_flower():
        if not words.until_eof:
            agent.serve(words.socket)
        threading.Thread(target=_serve_or_end, args=(agent, words.socket), daemon=True).start()
        sys.stdin.buffer.read()  # ends with the process that started this one


if __name__ == "__main__":
    main()
