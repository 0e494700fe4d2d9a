"""What a server asks a site to take part in, signed by who submits it."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import RecordDict
from flwr.serverapp import Grid
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from carefl_secure.config import Config, dump_config
from carefl_secure.deployment.flower.relay import PROPOSE
from carefl_secure.deployment.provisioning.documents import STRICT, PublicKey, Real, parse_json, read_json
from carefl_secure.deployment.provisioning.sites import Roster
from carefl_secure.errors import CohortError, PolicyError, ProtocolError, RunError
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.exchange import Exchange, party_name, wait_for_nodes
from carefl_secure.federation.transport.local_grid import OneRunGrid
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.run_folder import write_atomically
from carefl_secure.runs.plan_from_config import aggregation_of

VALID = 3600.0
"""Seconds for which a proposal holds, besides those that its submitter waits for the sites."""

SPENDING = ("train.masked", "train.submit")
"""The steps in which a site charges its ledger, before it answers."""

_LABEL = b"carefl proposal\x00"
_AHEAD = 300.0  # seconds that a submitter's clock may be ahead of a site's
_REMEMBERED = 50  # runs
_PAUSE = 1.0  # before a site that could not be reached is asked again


@dataclass(frozen=True, config=STRICT)
class Proposal:
    """One run, as it is proposed to the sites.

    ``config`` is the whole configuration as YAML, with the plan's sampling rate and number of records in place of
    ``auto`` and null; its paths mean nothing on another machine. ``dimension`` is the
    length of the adapter. A site computes ``base_hash`` and ``plan_hash``, 32 bytes each, itself and compares.
    ``number`` is above that of every earlier proposal of the same submitter, ``nonce`` 16 random bytes; the proposal
    holds from ``issued`` to ``expires``, in seconds since 1970. ``charged`` says, by site and run, in how many rounds
    of the submitter's earlier runs the site took part: its ledgers hold as many, unless an older copy was restored.
    """

    run: str
    config: str
    dimension: Annotated[int, Field(ge=1)]
    base_hash: PublicKey
    plan_hash: PublicKey
    number: Annotated[int, Field(ge=1)]
    nonce: Annotated[bytes, Field(min_length=16, max_length=16)]
    issued: Real
    expires: Real
    charged: dict[str, dict[str, Annotated[int, Field(ge=0)]]] = Field(default_factory=dict)

    @classmethod
    def of(cls, run: str, config: Config, plan: RunPlan, base_hash: bytes) -> Proposal:
        """Return the proposal of a planned run, valid from now; its number follows the clock."""
        declared = {"public_records": plan.privacy.public_records}
        config = config.with_sample_rate(plan.local.batch_share if plan.local else plan.privacy.sample_rate)
        whole = config.model_copy(update={"federation": config.federation.model_copy(update=declared)})
        now = time.time()
        fresh = (time.time_ns(), secrets.token_bytes(16), now, now + VALID)
        return cls(run, dump_config(whole), plan.encoding.dimension, base_hash, plan.hash(), *fresh)

    def message(self, key: Ed25519PrivateKey) -> RecordDict:
        """Return the signed message."""
        octets = TypeAdapter(Proposal).dump_json(self)
        return pack(
            proposal=octets, submitter=key.public_key().public_bytes_raw(), signature=key.sign(_LABEL + octets)
        )

    @classmethod
    def read(cls, content: RecordDict) -> tuple[Proposal, bytes]:
        """Return a proposal and its signer's public key; `ProtocolError` if malformed, `PolicyError` if unsigned."""
        fields = Fields(content, "proposal", "submitter", "signature")
        octets, submitter = fields.octets("proposal"), fields.octets("submitter")
        try:
            Ed25519PublicKey.from_public_bytes(submitter).verify(fields.octets("signature"), _LABEL + octets)
        except (InvalidSignature, ValueError) as error:
            raise PolicyError("the proposal's signature does not fit", "submitter") from error
        advice = "submitter and site need the same version"
        return parse_json(octets, cls, "the proposal", ProtocolError, advice), submitter

    def check_time(self) -> None:
        """Refuse a proposal outside its time by this clock; the `PolicyError`, clause ``stale``, says how far off."""
        age, left = time.time() - self.issued, self.expires - time.time()
        if age < -_AHEAD or left <= 0:
            when = f"{-age:.0f} s in the future" if age < 0 else f"{age:.0f} s ago"
            raise PolicyError(
                f"by this machine's clock the proposal was signed {when}, and it holds for "
                f"{self.expires - self.issued:.0f} s; if it is new, set the clock that is wrong",
                "stale",
            )


def next_number(bundle: Path) -> int:
    """Return a run number above all earlier ones of a submitter's bundle, by the clock; on disk before it is used."""
    with (bundle / "run_number").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        last = file.read()
        number = max(int(last) + 1 if last.isdecimal() else 1, time.time_ns())
        file.truncate(0)
        file.write(str(number))
        file.flush()
        os.fsync(file.fileno())
    return number


class ChargedRounds:
    """What a submitter remembers of the rounds that sites have charged, in ``charged.json`` of its folder.

    A site that has lost entries of its ledger would spend them again. It cannot tell from what is
    left, but what it lost stands here as well. Raises `RunError` when the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "charged.json"
        self.rounds: dict[str, dict[str, int]] = {}
        """By site and run; only the latest runs of each site are kept."""
        if self._path.exists():
            advice = "restore it, or remove it if no site has to be held to its earlier runs"
            self.rounds = read_json(self._path, _Charged, RunError, advice).rounds

    def add(self, site: str, run: str) -> None:
        """Count one round more, on disk when this returns."""
        runs = self.rounds.setdefault(site, {})
        runs[run] = runs.pop(run, 0) + 1
        for old in list(runs)[:-_REMEMBERED]:
            del runs[old]
        write_atomically(self._path, TypeAdapter(_Charged).dump_json(_Charged(self.rounds)), private=True)


@dataclass(frozen=True, config=STRICT)
class _Charged:
    rounds: dict[str, dict[str, Annotated[int, Field(ge=0)]]]


def cohort_of(config: Config, run: str, roster: Roster, base_hash: bytes) -> Cohort:
    """Return the cohort of a configuration and a roster, alike at every party; `PolicyError` where these disagree."""
    aggregation = aggregation_of(config)
    clients, helpers = roster.keys("client"), roster.keys("helper")
    if len(helpers) != aggregation.helpers or len(clients) != config.federation.clients:
        raise PolicyError(
            f"the run wants {config.federation.clients} clients and {aggregation.helpers} helpers, the roster "
            f"names {len(clients)} and {len(helpers)}",
            "roster",
        )
    return Cohort(run.encode(), clients, base_hash, helpers, aggregation)


def propose(grid: Grid, proposal: Proposal, key: Ed25519PrivateKey, parties: int, patience: float) -> dict[int, int]:
    """Propose a run to every site; return the place that each node claims, helpers after clients.

    A site whose agent cannot be reached yet is asked again: its SuperNode may be up first. ``key`` is the submitter's;
    ``parties`` sites must agree within ``patience`` seconds. Only a simulation of dropouts relies on the claimed
    places. Raises `PolicyError`, naming the clause, when a site refuses, `ProtocolError` when one plans another run,
    and `CohortError` when one does not answer in time.
    """
    end = time.monotonic() + patience
    message, agreed = proposal.message(key), dict[int, int]()
    while len(agreed) < parties and (left := end - time.monotonic()) > 0:
        asked = [node for node in wait_for_nodes(grid, parties, left) if node not in agreed]
        exchange = Exchange(grid, 0, max(0.0, end - time.monotonic()))
        for node, reply in exchange.ask(dict.fromkeys(asked, message), PROPOSE):
            fields = Fields(reply, "plan", "place")
            if fields.octets("plan") != proposal.plan_hash:
                raise ProtocolError(f"{party_name(grid, node)} plans another run; compare versions and settings")
            agreed[node] = fields.integer("place")
        if len(agreed) < parties:
            time.sleep(max(0.0, min(_PAUSE, end - time.monotonic())))
    if len(agreed) < parties:
        here = [node for node in sorted(grid.get_node_ids()) if node not in agreed]
        silent = ", ".join(party_name(grid, node) for node in here) or "none"
        known = set(grid.names) - set(grid.get_node_ids()) if isinstance(grid, OneRunGrid) else set()
        away = ", ".join(party_name(grid, node) for node in sorted(known)) or "none"
        raise CohortError(
            f"{len(agreed)} of {parties} parties agreed to the run within {patience:.0f} seconds; online, but without "
            f"an answer from its agent: {silent}; not online: {away}. Start the agents, and the nodes"
        )
    return agreed
