"""A site's policy is its last word: read anew for each run, and asked before a model is loaded."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from flwr.app import Error, RecordDict

from carefl_secure.config import Config, load_config
from carefl_secure.deployment.flower.relay import PROPOSE
from carefl_secure.deployment.provisioning.policy import TEMPLATE, Policy, check_policy, read_policy
from carefl_secure.deployment.provisioning.provision import rehearse
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.provisioning.sites import Sites
from carefl_secure.deployment.site import agent as agents
from carefl_secure.deployment.site.agent import Agent
from carefl_secure.deployment.site.proposal import Proposal
from carefl_secure.errors import ConfigError, PolicyError, PrivateRefusalError, ProtocolError
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.cohort import AggregationConfig, Cohort
from carefl_secure.federation.plan.run_plan import LocalPlan, RunPlan
from carefl_secure.federation.transport.error_codes import error_of_reply, is_dropout, refusal
from carefl_secure.privacy import Ledger
from carefl_secure.runs.plan_from_config import plan_with
from tests.support.sites import signed_anew

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
    rehearse(Sites("t", "h", 1, dict.fromkeys("abc")), tmp_path / "bundles")
    return tmp_path / "bundles" / "sites" / "a"


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Return what models were loaded for."""
    seen: list[Config] = []

    def work(config: Config, *_: Any) -> Any:
        seen.append(config)
        return SimpleNamespace(base_hash=bytes(32), task=Task())

    monkeypatch.setattr(agents, "Work", work)
    return seen


def allow(bundle: Path, **changes: Any) -> None:
    path = bundle / "policy.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def proposed(config: Config) -> tuple[Proposal, RunPlan]:
    plan = plan_with(config, RECORDS, DIMENSION)
    return Proposal.of("a-run", config, plan, bytes(32)), plan


def answer(agent: Agent, bundle: Path, proposal: Proposal) -> Exception | None:
    content = signed_anew(proposal, bundle.parents[1])
    head, _ = agent.answer({"action": PROPOSE, "group": "0"}, content)
    return error_of_reply(Error(head["code"], head["reason"]), "node 1") if head else None


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
        ("unit", {"allowed_units": ["person", "client"]}),
        ("trust", {"allowed_trust": ["none"]}),
        ("sampling", {"max_sample_rate": 0.1}),
        ("rounds", {"max_rounds": 1}),
        ("colluders", {"min_colluders": 2}),
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
    assert isinstance(error_of_reply(Error(head["code"], head["reason"]), "node 1"), ProtocolError)


def test_a_listed_plan_and_base_are_allowed(bundle: Path, worked: list[Config]) -> None:
    proposal, plan = proposed(settings())
    allow(bundle, allowed_plans=[plan.hash().hex()], allowed_base_models=["00" * 32])
    assert answer(Agent(SiteBundle.open(bundle)), bundle, proposal) is None


def test_what_the_ledger_holds_counts_towards_the_policy(bundle: Path, worked: list[Config]) -> None:
    agent = Agent(SiteBundle.open(bundle))
    proposal, plan = proposed(settings())
    assert answer(agent, bundle, proposal) is None
    (bundle / "ledgers").mkdir(exist_ok=True)
    path = next(iter((bundle / "ledgers").glob("*.jsonl")), None) or _corpus(bundle)
    ledger = Ledger(path, {"client": "a"})
    assert plan.event is not None
    ledger.spend(plan.event, 8.0, plan.privacy.delta, {"run": "an-earlier-run", "round": 1})
    error = answer(agent, bundle, proposal)
    # All rounds of the proposed run are priced, not the first alone.
    assert isinstance(error, PrivateRefusalError)
    assert "above max_epsilon_per_corpus" in (bundle / "refusals.log").read_text()
    allow(bundle, max_epsilon_per_corpus=30.0, max_epsilon_total=30.0)
    assert answer(agent, bundle, proposal) is None


def _corpus(bundle: Path) -> Path:
    import hashlib

    return bundle / "ledgers" / f"{hashlib.sha256(b'share').hexdigest()[:16]}.jsonl"


def test_a_proposal_that_declares_nothing_or_cannot_be_read_is_refused(bundle: Path, worked: list[Config]) -> None:
    agent = Agent(SiteBundle.open(bundle))
    proposal, _ = proposed(settings())
    undeclared = proposal.config.replace(f"public_records: {RECORDS}", "public_records: null")
    assert undeclared != proposal.config
    for text in (undeclared, "a: [", "- 1", "7"):
        error = answer(agent, bundle, dataclasses.replace(proposal, config=text))
        assert isinstance(error, ProtocolError), (text, error)
    assert not worked


def test_a_server_that_draws_its_records_does_not_size_the_sites(tmp_path: Path, worked: list[Config]) -> None:
    sites = Sites("t", "h", 1, dict.fromkeys("abc", "/srv/images"))
    rehearse(sites, tmp_path / "bundles")
    bundle = tmp_path / "bundles" / "sites" / "a"
    proposal, _ = proposed(settings("data.records=400", "data.labels=basic"))
    assert answer(Agent(SiteBundle.open(bundle)), bundle, proposal) is None
    assert worked[0].data.source == "/srv/images" and worked[0].data.records is None
    assert worked[0].federation.public_records == RECORDS


def test_a_helper_minds_no_path_of_records_for_it_opens_none(tmp_path: Path, worked: list[Config]) -> None:
    sites = Sites("t", "h", 1, dict.fromkeys("abc", "/srv/images"), ("keeper", "other"))
    rehearse(sites, tmp_path / "bundles")
    words = ("federation.aggregation=committee", "federation.committee_members=2")
    proposal, _ = proposed(settings(*words, "data.source=/srv/public", "data.words=[a,b]"))
    helper = tmp_path / "bundles" / "sites" / "keeper"
    allow(helper, min_committee_members=2)
    assert answer(Agent(SiteBundle.open(helper)), helper, proposal) is None
    assert not worked and not (helper / "ledgers").exists()


# --- the file -------------------------------------------------------------------------------------

FILE = TEMPLATE.format(note="", roster="CD" * 32, submitters=["AB" * 32])
SIGNER = bytes.fromhex("ab" * 32)


def written(path: Path, **changes: Any) -> Policy:
    """Read the provisioned policy with some clauses changed; None leaves one out."""
    whole = yaml.safe_load(FILE) | changes
    kept = {name: value for name, value in whole.items() if value is not None}
    path.write_text(yaml.safe_dump(kept))
    return read_policy(path)


def test_the_provisioned_policy_is_the_careful_one(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(FILE)
    policy = read_policy(path)
    assert policy == written(path)
    assert policy.submitters == ("ab" * 32,)
    assert policy.max_delta == 1e-4  # written without a point, as people do
    assert not policy.allow_unprotected
    assert (policy.min_committee_members, policy.max_committee_dropout_tolerance) == (3, 0)
    assert policy.min_colluders == 1 and policy.min_survivors == policy.min_clients == 3


@pytest.mark.parametrize("clause", [field.name for field in dataclasses.fields(Policy)])
def test_a_policy_without_one_of_its_clauses_is_refused_by_name(tmp_path: Path, clause: str) -> None:
    with pytest.raises(ConfigError, match=f"p.yaml: {clause} is missing; a policy must state"):
        written(tmp_path / "p.yaml", **{clause: None})


@pytest.mark.parametrize(
    ("clause", "value"),
    [
        ("more", 1),
        ("max_epsilon_total", float("inf")),
        ("max_epsilon_total", float("nan")),
        ("max_epsilon_per_corpus", True),
        ("max_epsilon_per_corpus", "plenty"),
        ("max_delta", 0),
        ("min_survivors", 0),
        ("min_clients", 3.0),
        ("min_colluders", -1),
        ("allowed_units", ["none"]),
        ("allowed_trust", "none"),
        ("submitters", "ab" * 32),
        ("submitters", ["ab"]),
        ("allowed_plans", ["zz" * 32]),
        ("allow_unprotected", "no way"),
        ("allow_unprotected", 1),
    ],
)
def test_a_clause_that_is_not_understood_allows_nothing(tmp_path: Path, clause: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        written(tmp_path / "p.yaml", **{clause: value})
    text = str(caught.value)
    assert clause in text and "p.yaml" in text and "\n" not in text
    assert caught.value.exit_code == 2


def test_a_file_that_is_no_policy_is_refused(tmp_path: Path) -> None:
    for text in ("[]", "a: [", "max_rounds: 1\nmax_rounds: 2"):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(ConfigError):
            read_policy(tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policy(tmp_path / "none.yaml")


# --- the clauses ----------------------------------------------------------------------------------


def test_a_site_is_proposed_the_rate_that_auto_came_to_and_holds_it_to_its_policy(
    bundle: Path, worked: list[Config]
) -> None:
    agent, config = Agent(SiteBundle.open(bundle)), settings()
    assert config.privacy.sample_rate == "auto"
    plan = plan_with(config.with_sample_rate(0.5), RECORDS, DIMENSION)  # as of a head alone on so few records
    proposal = Proposal.of("a-run", config, plan, bytes(32))
    assert yaml.safe_load(proposal.config)["privacy"]["sample_rate"] == 0.5
    assert answer(agent, bundle, proposal) is None  # 0.5 is what a new site allows
    assert [one.sample_rate for one in worked] == [0.5]
    allow(bundle, max_sample_rate=0.4)
    error = answer(agent, bundle, proposal)
    assert isinstance(error, PolicyError) and error.clause == "sampling"
    assert "samples records more often than the site's policy allows" in str(error)
    log = (bundle / "refusals.log").read_text()
    assert "rate 0.5 is above 0.4" in log and "privacy.sample_rate" in log and len(worked) == 1


LOCAL = LocalPlan(steps=2, learning_rate=0.1, batch_share=0.5)


@functools.cache
def known_plan(unit: str = "record", **options: Any) -> RunPlan:
    return plan_run(
        PlanRequest(
            unit=unit,  # type: ignore[arg-type]
            dimension=60,
            clients=4,
            rounds=2,
            public_records=120,
            sample_rate=1.0 if unit == "client" else 0.5,
            clipping_norm=1.0,
            delta=1e-5,
            target_epsilon=None if unit == "none" else 8.0,
            local=LOCAL if unit == "client" or options.get("trust") == "none" else None,
            **options,
        )
    )


def cohort(members: int = 0, tolerance: int = 0) -> Cohort:
    keys = [bytes([n]) * 32 for n in range(4 + members)]
    config = AggregationConfig()
    if members:
        config = AggregationConfig(protocol="committee", members=members, dropout_tolerance=tolerance)
    return Cohort(b"r", tuple(keys[:4]), bytes(32), tuple(keys[4:]), config)


@pytest.mark.parametrize(
    ("clause", "changes", "others"),
    [
        ("submitter", {"submitters": []}, {}),
        ("base", {"allowed_base_models": ["00" * 31 + "01"]}, {}),
        ("plan", {"allowed_plans": ["00" * 32]}, {}),
        ("aggregation", {"allowed_aggregation": ["committee"]}, {}),
        ("aggregation", {"allowed_aggregation": ["pairwise"]}, {"members": 3}),
        ("committee", {"min_committee_members": 4}, {"members": 3}),
        ("committee", {}, {"members": 3, "tolerance": 1}),
        ("cohort", {"min_clients": 5}, {}),
        ("cohort", {"min_survivors": 4}, {}),
        ("colluders", {"min_colluders": 2}, {}),
        ("rounds", {"max_rounds": 1}, {}),
        ("unit", {"allowed_units": ["client"]}, {}),
        ("trust", {"allowed_trust": ["none"]}, {}),
        ("sampling", {"max_sample_rate": 0.49}, {}),
        ("epsilon", {"max_epsilon_per_corpus": 7.9}, {}),
        ("delta", {"max_delta": 9e-6}, {}),
    ],
)
def test_each_clause_refuses_with_a_number_of_its_own(
    tmp_path: Path, clause: str, changes: dict[str, Any], others: dict[str, int]
) -> None:
    policy = written(tmp_path / "p.yaml", **changes)
    with pytest.raises(PolicyError) as caught:
        check_policy(policy, known_plan(), cohort(**others), SIGNER)
    assert caught.value.clause == clause
    sent = refusal(caught.value)
    assert not is_dropout(sent)
    back = error_of_reply(sent, "node 5")
    assert isinstance(back, PolicyError) and back.clause == clause
    assert str(caught.value) not in sent.reason
    assert not any(digit in sent.reason for digit in "0123456789")


@pytest.mark.parametrize(
    ("changes", "unit", "others"),
    [
        ({}, "record", {}),
        ({}, "record", {"members": 3}),
        ({"max_committee_dropout_tolerance": 1}, "record", {"members": 3, "tolerance": 1}),
        ({"min_committee_members": 2}, "record", {"members": 2}),
        ({"allowed_aggregation": ["pairwise"], "min_committee_members": 9}, "record", {}),
        ({"min_clients": 4, "max_rounds": 2, "max_delta": 1e-5}, "record", {}),
        ({"allowed_units": ["record"], "allowed_trust": ["secagg"]}, "record", {}),
        ({"min_colluders": 0, "max_epsilon_per_corpus": 8}, "record", {}),
        ({"allowed_base_models": ["00" * 32]}, "record", {}),
        ({"max_sample_rate": 0.1}, "client", {}),  # where nobody is sampled
        ({"allow_unprotected": True, "allowed_units": []}, "none", {}),
    ],
)
def test_a_run_that_keeps_every_clause_is_allowed(
    tmp_path: Path, changes: dict[str, Any], unit: str, others: dict[str, int]
) -> None:
    check_policy(written(tmp_path / "p.yaml", **changes), known_plan(unit), cohort(**others), SIGNER)


def test_colluders_are_asked_for_under_the_secure_sum_alone(tmp_path: Path) -> None:
    own_noise = known_plan(trust="none", max_colluders=0)
    check_policy(written(tmp_path / "p.yaml"), own_noise, cohort(), SIGNER)
    shared = known_plan(max_colluders=0)
    with pytest.raises(PolicyError, match="0 colluding clients are fewer than 1"):
        check_policy(written(tmp_path / "p.yaml"), shared, cohort(), SIGNER)


def test_a_run_without_noise_needs_a_policy_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no differential privacy"):
        check_policy(written(tmp_path / "p.yaml"), known_plan("none"), cohort(), SIGNER)
