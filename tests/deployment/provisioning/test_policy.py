"""A site's policy is its last word: read anew for each run, and asked before a model is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from flwr.app import Error, RecordDict

from carefl_secure.config import Config, load_config
from carefl_secure.deployment.flower.relay import PROPOSE
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle, Sites, provision
from carefl_secure.deployment.site import agent as agents
from carefl_secure.deployment.site.agent import Agent
from carefl_secure.deployment.site.proposal import Proposal
from carefl_secure.errors import PolicyError, ProtocolError
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.error_codes import error_of_reply
from carefl_secure.privacy import Ledger
from carefl_secure.runs.plan_from_config import plan_with

RECORDS, DIMENSION = 90, 50


def settings(*words: str) -> Config:
    few = ("federation.clients=3", "simulation.dropout=0", "federation.rounds=2")
    return load_config(None, [*few, f"federation.public_records={RECORDS}", *words])


class Task:
    """Records of which nobody may ask anything here."""

    dimension, records = DIMENSION, 30

    def clipped_sum(self, adapter: Any, indices: Any, number: int) -> Any:
        raise AssertionError("a record was read")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    provision(Sites("t", "h", 1, dict.fromkeys("abc")), tmp_path / "bundles")
    return tmp_path / "bundles" / "sites" / "a"


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Return what models were loaded for."""
    seen: list[Config] = []

    def work(config: Config, index: int, own_data: bool) -> Any:
        seen.append(config)
        plan = plan_with(config, RECORDS, DIMENSION)
        return SimpleNamespace(plan=plan, base_hash=bytes(32), task=Task())

    monkeypatch.setattr(agents, "Work", work)
    return seen


def allow(bundle: Path, **changes: Any) -> None:
    path = bundle / "policy.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def proposed(config: Config) -> tuple[Proposal, RunPlan]:
    plan = plan_with(config, RECORDS, DIMENSION)
    return Proposal.of("a-run", config, plan, bytes(32)), plan


def answer(agent: Agent, bundle: Path, proposal: Proposal) -> Exception | None:
    key = read_identity(bundle.parents[1] / "submit" / "submit.key")
    head, _ = agent.answer({"action": PROPOSE, "group": "0"}, proposal.message(key))
    return error_of_reply(Error(head["code"], head["reason"]), 1) if head else None


@pytest.mark.parametrize(
    ("clause", "changes"),
    [
        ("submitter", {"submitters": []}),
        ("base", {"allowed_base_models": ["11" * 32]}),
        ("plan", {"allowed_plans": ["00" * 32]}),
        ("aggregation", {"allowed_aggregation": ["committee"]}),
        ("cohort", {"min_clients": 4}),
        ("cohort", {"min_survivors": 4}),
        ("epsilon", {"max_epsilon_per_corpus": 7.9}),
        ("delta", {"max_delta": 1.0e-6}),
    ],
)
def test_a_changed_policy_refuses_the_next_run_before_a_model_is_loaded(
    bundle: Path, worked: list[Config], clause: str, changes: dict[str, Any]
) -> None:
    agent = Agent(SiteBundle.open(bundle))
    proposal, plan = proposed(settings())
    assert answer(agent, bundle, proposal) is None and len(worked) == 1
    allow(bundle, **changes)
    error = answer(agent, bundle, proposal)
    assert isinstance(error, PolicyError) and error.clause == clause
    assert len(worked) == 1
    log = (bundle / "refusals.log").read_text()
    assert "PolicyError" in log and log.startswith("20")
    if clause == "plan":
        assert plan.hash().hex() in log  # what a site would write into its list
    assert not any(Ledger(path).events() for path in (bundle / "ledgers").glob("*"))
    head, _ = agent.answer({"action": "query.advertise", "group": "1"}, RecordDict())
    assert isinstance(error_of_reply(Error(head["code"], head["reason"]), 1), ProtocolError)


def test_a_listed_plan_and_base_are_allowed(bundle: Path, worked: list[Config]) -> None:
    proposal, plan = proposed(settings())
    allow(bundle, allowed_plans=[plan.hash().hex()], allowed_base_models=["00" * 32])
    assert answer(Agent(SiteBundle.open(bundle)), bundle, proposal) is None


def test_what_the_ledger_holds_counts_towards_the_policy(
    bundle: Path, worked: list[Config]
) -> None:
    agent = Agent(SiteBundle.open(bundle))
    proposal, plan = proposed(settings())
    assert answer(agent, bundle, proposal) is None
    (bundle / "ledgers").mkdir(exist_ok=True)
    path = next(iter((bundle / "ledgers").glob("*.jsonl")), None) or _corpus(bundle)
    ledger = Ledger(path, {"client": "0"})
    assert plan.event is not None
    ledger.spend(plan.event, 8.0, plan.privacy.delta, {"run": "an-earlier-run", "round": 1})
    error = answer(agent, bundle, proposal)
    # All rounds of the proposed run are priced, not the first alone.
    assert isinstance(error, PolicyError) and error.clause == "epsilon"
    allow(bundle, max_epsilon_per_corpus=30.0, max_epsilon_total=30.0)
    assert answer(agent, bundle, proposal) is None


def _corpus(bundle: Path) -> Path:
    import hashlib

    return bundle / "ledgers" / f"{hashlib.sha256(b'share').hexdigest()[:16]}.jsonl"


def test_a_proposal_that_declares_nothing_or_cannot_be_read_is_refused(
    bundle: Path, worked: list[Config]
) -> None:
    agent = Agent(SiteBundle.open(bundle))
    proposal, _ = proposed(settings())
    undeclared = proposal.config.replace(f"public_records: {RECORDS}", "public_records: null")
    assert undeclared != proposal.config
    for text in (undeclared, "a: [", "- 1", "7"):
        error = answer(agent, bundle, dataclasses.replace(proposal, config=text))
        assert isinstance(error, ProtocolError), (text, error)
    assert not worked


def test_a_server_that_draws_its_records_does_not_size_the_sites(
    tmp_path: Path, worked: list[Config]
) -> None:
    sites = Sites("t", "h", 1, dict.fromkeys("abc", "/srv/images"))
    provision(sites, tmp_path / "bundles")
    bundle = tmp_path / "bundles" / "sites" / "a"
    proposal, _ = proposed(settings("data.records=400", "data.labels=basic"))
    assert answer(Agent(SiteBundle.open(bundle)), bundle, proposal) is None
    assert worked[0].data.source == "/srv/images" and worked[0].data.records is None
    assert worked[0].federation.public_records == RECORDS


def test_a_helper_minds_no_path_of_records_for_it_opens_none(
    tmp_path: Path, worked: list[Config]
) -> None:
    sites = Sites("t", "h", 1, dict.fromkeys("abc", "/srv/images"), ("keeper", "other"))
    provision(sites, tmp_path / "bundles")
    words = ("federation.aggregation=committee", "federation.committee_members=2")
    proposal, _ = proposed(settings(*words, "data.source=/srv/public", "data.words=[a,b]"))
    helper = tmp_path / "bundles" / "sites" / "keeper"
    assert answer(Agent(SiteBundle.open(helper)), helper, proposal) is None
    assert not worked and not (helper / "ledgers").exists()
