"""The worked examples of docs/architecture.md, each added from outside the package and run."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carefl_secure.audit.views import Attack
from carefl_secure.config import load_config
from carefl_secure.errors import ConfigError, DataError, PrivacyError, ProtocolError
from carefl_secure.federation.aggregation.base import ClientSetup, ServerSetup
from carefl_secure.federation.aggregation.registry import find_protocol
from carefl_secure.federation.in_process import Clients, make_parties
from carefl_secure.federation.local_update.local_training import find_rule
from carefl_secure.federation.plan.cohort import AggregationConfig
from carefl_secure.federation.plan.run_plan import LocalPlan
from carefl_secure.federation.server.optimizers import FedAvg, ServerOptimizer
from carefl_secure.federation.transport.exchange import Directory
from carefl_secure.federation.transport.messages import pack
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.privacy.statement import aggregation_text
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.plan_from_config import aggregation_of, local_plan
from tests.support.federation import toy_plan, toy_tasks
from tests.support.points import point_tasks
from tests.support.running import federate, run_spec

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
MakeBench = Callable[..., Any]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return what installs an example as pip would: on the path, with its entry points."""
    before = set(sys.modules)

    def put(name: str) -> None:
        source = EXAMPLES / name
        project = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["project"]
        info = tmp_path / f"{name}-{project['version']}.dist-info"
        info.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"]
        (info / "METADATA").write_text(lines[0], "utf-8")
        groups = [
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups), "utf-8")
        monkeypatch.syspath_prepend(str(source))
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()

    yield put
    find_protocol.cache_clear()
    for name in set(sys.modules) - before:
        if name in {path.name for path in EXAMPLES.iterdir()}:
            del sys.modules[name]


def test_a_local_rule_from_outside_trains_a_client_level_run(
    install: Callable[[str], None], make_bench: MakeBench
) -> None:
    with pytest.raises(ConfigError, match=r"momentum.*unknown.*sgd"):
        find_rule("momentum")
    install("carefl_momentum")
    moved = {}
    for rule in ("sgd", "momentum"):
        local = LocalPlan(steps=4, learning_rate=0.1, batch_share=1.0, rule=rule)
        tasks = point_tasks(6)
        bench = make_bench(tasks=tasks, dimension=40, unit="none", local=local)
        moved[rule] = bench.start(rounds=1)
    means = np.stack([task.points.mean(0) for task in tasks]).mean(0)
    # On a quadratic of curvature 1 both have a closed form: w_k / mean after four steps.
    slow, fast, velocity = 0.0, 0.0, 0.0
    for _ in range(4):
        slow += 0.1 * (1 - slow)
        velocity = 0.5 * velocity + (1 - fast)
        fast += 0.1 * velocity
    np.testing.assert_allclose(moved["sgd"], slow * means, atol=1e-3)
    np.testing.assert_allclose(moved["momentum"], fast * means, atol=1e-3)
    assert fast > 1.4 * slow


def test_the_norm_of_a_clients_update_is_bounded_whatever_the_rule_does(install: Callable[[str], None]) -> None:
    from carefl_secure.federation.local_update.choice import local_work
    from carefl_secure.noise import SystemKeySource

    install("carefl_momentum")
    local = LocalPlan(steps=4, learning_rate=10.0, batch_share=0.5, rule="momentum")
    plan = toy_plan(6, 40, unit="client", sample_rate=1.0, local=local, normalise=False)
    (task,) = point_tasks(1, spread=1000.0)
    update = local_work(plan, task, 0).release(np.zeros(40, np.float32), 1, SystemKeySource())
    assert float(np.linalg.norm(update)) <= plan.privacy.clipping_norm


def test_a_local_rule_is_chosen_in_the_configuration_and_refused_where_it_has_no_effect(
    install: Callable[[str], None],
) -> None:
    unit = ("privacy.unit=client", "federation.clients=60", "federation.local_rule=momentum")
    with pytest.raises(ConfigError, match=r"choose one of sgd, or install"):
        load_config(None, unit)
    install("carefl_momentum")
    local = local_plan(load_config(None, unit))
    assert local is not None and local.rule == "momentum"
    for words in ((), ("privacy.trust=none",)):
        with pytest.raises(ConfigError, match=r"federation\.local_rule=momentum"):
            load_config(None, ("federation.local_rule=momentum", *words))


@pytest.fixture
def npz_folder(tmp_path: Path) -> Path:
    """Make a folder that only the example can read: 90 images of 45 subjects in one file."""
    rng = np.random.default_rng(3)
    labels = np.array(["happiness", "sadness", "anger"])[np.arange(90) % 3]
    folder = tmp_path / "corpus"
    folder.mkdir()
    np.savez(
        folder / "images.npz",
        images=rng.integers(0, 256, (90, 48, 48, 3), dtype=np.uint8),
        labels=labels,
        subjects=np.array([f"s{row // 2}" for row in range(90)]),
    )
    return folder


def test_a_corpus_from_outside_is_shared_out_to_clients(install: Callable[[str], None], npz_folder: Path) -> None:
    from carefl_secure.data.open_corpus import open_corpus
    from carefl_secure.progress import SilentReporter
    from carefl_secure.runs.corpora import load_parts, share_out

    with pytest.raises(ConfigError, match=r"npz.*unknown.*imagefolder"):
        open_corpus(npz_folder, format="npz")
    install("carefl_npz")
    words = [f"data.source={npz_folder}", "data.format=npz", "privacy.delta=1e-3"]
    config = load_config(None, [*words, "federation.clients=4"])
    parts = load_parts(config, SilentReporter())
    assert parts.private.space.labels == ("anger", "happiness", "sadness")
    shares = share_out(config, parts.private)
    held = np.sort(np.concatenate(shares))
    assert len(shares) == 4 and held.tolist() == list(range(len(parts.private.records)))
    sizes = [len(part.records) for part in (parts.private, parts.public, parts.test)]
    assert sum(sizes) == 90
    subjects = [{r.subject for r in p.records} for p in (parts.private, parts.public, parts.test)]
    assert not subjects[0] & subjects[1] and not subjects[0] & subjects[2]
    assert parts.private.image(0).size == (48, 48)


def test_a_damaged_file_of_the_outside_corpus_is_a_data_error(
    install: Callable[[str], None], npz_folder: Path
) -> None:
    from carefl_secure.data.open_corpus import open_corpus

    install("carefl_npz")
    file = npz_folder / "images.npz"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"images\.npz cannot be read"):
        open_corpus(npz_folder, format="npz")


@pytest.mark.slow
def test_the_outside_corpus_trains(
    install: Callable[[str], None], npz_folder: Path, train_small: Callable[..., Path]
) -> None:
    install("carefl_npz")
    run = train_small(data__source=npz_folder, data__format="npz", data__records="null")
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


def test_a_protocol_from_outside_sums_as_those_of_the_package_do(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    plan = toy_plan(6, 60, unit="none", rounds=2, sample_rate=1.0)
    with pytest.raises(ConfigError, match=r"federation.aggregation is 'signed', which is unknown"):
        find_protocol("signed")
    install("carefl_signed")
    sums = {}
    for name in ("pairwise", "signed", "witnessed"):
        own = {"own_helpers": 1} if name == "witnessed" else {}
        sums[name] = federate(
            plan,
            toy_tasks(6),
            np.zeros(60, np.float32),
            optimizer=FedAvg(1.0),
            folder=RunFolder.create(tmp_path / name, ""),
            key_source=lambda index: DeterministicKeySource(b"k%d" % index),
            aggregation=name,
            **own,
        ).adapter
    np.testing.assert_array_equal(sums["signed"], sums["pairwise"])
    np.testing.assert_array_equal(sums["witnessed"], sums["pairwise"])
    assert np.abs(sums["signed"]).max() > 0.01


def test_the_outside_protocol_refuses_a_plan_that_needs_the_vectors_hidden(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    install("carefl_signed")
    with pytest.raises(ConfigError, match="hides no vector"):
        federate(
            toy_plan(6, 60, rounds=1),
            toy_tasks(6),
            np.zeros(60, np.float32),
            optimizer=FedAvg(1.0),
            folder=RunFolder.create(tmp_path, ""),
            aggregation="signed",
        )


def test_the_outside_protocol_refuses_what_was_changed_on_the_way(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    install("carefl_signed")
    signed = importlib.import_module("carefl_signed")
    spec = run_spec(
        toy_plan(6, 60, unit="none", rounds=1), toy_tasks(6), RunFolder.create(tmp_path, ""), {"aggregation": "signed"}
    )
    identities, cohort, _ = make_parties(spec)
    setup = ClientSetup(spec.plan, cohort, 2, identities[2], spec.key_source(2))
    client = signed.SignedClient(setup, 1)
    client.bind(bytes(32))
    encoding = spec.plan.encoding
    words = np.uint16 if encoding.bits == 16 else np.uint32
    upload = client.mask(np.ones(encoding.padded, words))
    kind = ServerSetup(spec.plan, cohort, Directory(6, 0))

    def collect(content: bytes, number: int = 1, index: int = 2) -> None:
        server = signed.SignedServer(kind, None, number, bytes(32))
        server._index_of = {7: index}
        server.collect(7, pack(upload=content))

    collect(upload)
    flipped = upload[:-1] + bytes([upload[-1] ^ 1])
    for wrong in (lambda: collect(flipped), lambda: collect(upload, 2), lambda: collect(upload, 1, 3)):
        with pytest.raises(ProtocolError, match="not signed"):
            wrong()


def test_a_protocol_is_chosen_in_the_configuration_once_it_is_installed(install: Callable[[str], None]) -> None:
    words = ("federation.aggregation=signed", "privacy.trust=none")
    with pytest.raises(ConfigError, match=r"choose one of pairwise, committee, encrypted"):
        load_config(None, words)
    install("carefl_signed")
    assert aggregation_of(load_config(None, words)).protocol == "signed"
    assert aggregation_of(load_config(None, words)).helpers == 0
    agreed = aggregation_of(load_config(None, ("federation.aggregation=witnessed", words[1])))
    assert agreed.helpers == 1
    assert AggregationConfig.from_json(agreed.to_json()) == agreed
    assert "not reviewed" in aggregation_text("signed")


def test_nothing_is_released_when_the_outside_helper_refuses(
    install: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("carefl_signed")
    plan = toy_plan(6, 60, unit="none", rounds=1, sample_rate=1.0)

    def run(name: str, own: int) -> Path:
        folder = RunFolder.create(tmp_path / name, "")
        start, engine = np.zeros(60, np.float32), {"aggregation": "witnessed", "own_helpers": own}
        federate(plan, toy_tasks(6), start, optimizer=FedAvg(1.0), folder=folder, **engine)
        return folder.path

    with pytest.raises(ConfigError, match="needs 1 helpers; the cohort agreed on 0"):
        run("short", 0)
    witness = importlib.import_module("carefl_signed").Witness
    monkeypatch.setattr(witness, "_check", lambda *_: (_ for _ in ()).throw(ProtocolError("no")))
    with pytest.raises(ProtocolError, match=r"the helper refused.*\(the witness did not sign"):
        run("refused", 1)
    (log,) = (tmp_path / "refused").rglob("refusals.log")
    assert log.read_text() == "ProtocolError: no\n"


def test_every_example_is_shown_in_the_architecture_page() -> None:
    page = (EXAMPLES.parent / "architecture.md").read_text("utf-8")
    for example in sorted(p.name for p in EXAMPLES.iterdir() if p.is_dir() and not p.name.startswith("__")):
        assert f"docs/examples/{example}/" in page


def snippet(name: str) -> dict[str, Any]:
    """Run the code block of the architecture page that defines a class; return what it defines."""
    page = (EXAMPLES.parent / "architecture.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = [block for block in blocks if f"class {name}" in block]
    scope: dict[str, Any] = {"np": np, "dataclass": dataclass, "Attack": Attack, "Clients": Clients}
    exec(compile(code, "architecture.md", "exec", dont_inherit=True), scope)
    return scope


def test_the_code_shown_is_the_code_of_the_examples() -> None:
    page = (EXAMPLES.parent / "architecture.md").read_text("utf-8")
    shown = re.findall(r'```\w+ title="docs/examples/([^"]+)"\n(.*?)```', page, re.DOTALL)
    assert shown
    for file, code in shown:
        assert code.strip() in (EXAMPLES / file).read_text("utf-8"), file


def test_the_server_optimizer_of_the_page_drives_a_run(tmp_path: Path) -> None:
    optimizer: ServerOptimizer = snippet("SignDescent")["SignDescent"](0.5)
    start = np.array([1.0, -2.0, 0.0], np.float32)
    moved = optimizer.step(start, np.array([3.0, -1.0, 0.0]))
    np.testing.assert_array_equal(moved, np.array([0.5, -1.5, 0.0], np.float32))
    assert moved.dtype == np.float32
    optimizer.load(optimizer.state())


def test_the_attack_of_the_page_accepts_its_own_view_and_no_other() -> None:
    scope = snippet("LargestSum")
    attack = scope["LargestSum"]()
    assert attack(scope["NormView"]((np.zeros(3), np.ones(3), np.full(3, 0.5)))) == 1
    with pytest.raises(PrivacyError):
        attack((np.zeros(3),))


def test_the_engine_of_the_page_runs_a_round(tmp_path: Path) -> None:
    engine = snippet("Counting")["Counting"]()
    plan = toy_plan(6, 60, unit="none", rounds=1, sample_rate=1.0)
    tasks = toy_tasks(6)
    result = federate(
        plan,
        tasks,
        np.zeros(60, np.float32),
        optimizer=FedAvg(1.0),
        folder=RunFolder.create(tmp_path, ""),
        engine=engine,
    )
    expected = -np.mean([task.gradients for task in tasks], axis=(0, 1))
    np.testing.assert_allclose(result.adapter, expected, atol=1e-4)
    assert engine.parties.messages == 2 * 5 * 6  # five exchanges with six clients
