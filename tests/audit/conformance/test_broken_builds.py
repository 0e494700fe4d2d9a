"""Builds broken on purpose, one promise at a time; the audit must name the one that broke."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from carefl_secure.audit.attacks.canaries import GradientCanaries, judge_canaries
from carefl_secure.audit.attacks.server_transcript import ServerEyes, judge_transcript
from carefl_secure.audit.conformance.checks import Conformance, MachineView
from carefl_secure.audit.conformance.released import _Keys, drive, released_findings
from carefl_secure.audit.replay.canary_run import rehearse
from carefl_secure.audit.replay.recording import Rehearsal
from carefl_secure.config import Config, load_config
from carefl_secure.federation.client.banded_state import BandedState
from carefl_secure.federation.local_update.gradient_sum import GradientSum
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import DeterministicKeySource, KeySource, KeyStream, SystemKeySource
from carefl_secure.noise.skellam import SkellamSampler, correlate
from carefl_secure.privacy import poisson_sample
from carefl_secure.secagg import encode
from tests.audit.conftest import VectorProbe, VectorTask, patch_everywhere, system

Machine = Callable[..., MachineView]


def faults(view: MachineView) -> set[str]:
    return {f.check for f in Conformance()(view) if f.verdict == "falsified"}


def test_our_build_passes(machine: Machine) -> None:
    findings = Conformance()(machine(driven=True))
    assert {f.verdict for f in findings} == {"passed"}
    assert {f.check for f in findings} == {
        "noise",
        "fresh noise",
        "clipping",
        "remove one",
        "independent losses",
        "sampler",
        "sensitivity",
        "released records",
        "released dither",
        "released noise",
        "event",
    }


@pytest.mark.parametrize("scale", [0.25, 0.81])
def test_less_noise_than_planned(machine: Machine, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Half the standard deviation, and nine tenths of it."""

    class Thinner(SkellamSampler):
        def __init__(self, variance: float) -> None:
            super().__init__(variance * scale)

    patch_everywhere(monkeypatch, "SkellamSampler", Thinner)
    # 8,000 values: nine tenths are twelve standard errors off, and five are asked for.
    assert faults(machine(dimension=8000)) == {"noise"}


def test_noise_from_the_seed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Known(SkellamSampler):
        def sample(self, stream: KeyStream, count: int) -> NDArray[np.int64]:
            return super().sample(KeyStream(bytes(32)), count)

    patch_everywhere(monkeypatch, "SkellamSampler", Known)
    # Five clients with one noise: the sum is too large as well.
    assert faults(machine()) == {"fresh noise", "noise"}


def test_all_keys_from_the_seed(machine: Machine) -> None:
    def keys(index: int) -> KeySource:
        return DeterministicKeySource(f"0/{index}".encode())

    view = machine(keys=keys)
    assert faults(view) == {"fresh noise"}
    transcript = view.rehearsal.transcript()
    found = judge_transcript(transcript, ServerEyes()(transcript))
    assert [f.check for f in found if f.verdict == "falsified"] == ["weak seed"]


def test_clipping_by_tile(machine: Machine) -> None:
    task = VectorTask(2000, 1.0, tiles=4)
    assert faults(machine(VectorProbe(task))) == {"clipping", "remove one"}


@pytest.mark.parametrize("head", [100, 1000])
def test_a_label_head_that_is_left_out_of_clipping(machine: Machine, head: int) -> None:
    """A twentieth of the entries outside makes a record 2.6 % too long, half of them 41 %."""
    task = VectorTask(2000, 1.0, outside=head)
    assert faults(machine(VectorProbe(task))) == {"clipping", "remove one"}


def test_a_mean_over_the_batch(machine: Machine) -> None:
    task = VectorTask(2000, 1.0, mean=True)
    assert "remove one" in faults(machine(VectorProbe(task)))


def test_losses_that_mix_records(machine: Machine) -> None:
    task = VectorTask(2000, 1.0)
    assert faults(machine(VectorProbe(task, mixed=True))) == {"independent losses"}


class Shuffled:
    """Epochs: every record has its turn, in batches of one size."""

    def __init__(self) -> None:
        self._left: dict[int, NDArray[np.int64]] = {}
        self._rng = np.random.default_rng(1)
        self._turn = 0

    def __call__(self, records: int, rate: float, stream: KeyStream) -> NDArray[np.int64]:
        if records == 0:
            return np.empty(0, np.int64)
        size = max(1, round(rate * records))
        self._turn = (self._turn + 1) % 5  # five clients take turns with one sampler
        left = self._left.get(self._turn, np.empty(0, np.int64))
        if len(left) < size:
            left = self._rng.permutation(records)
        self._left[self._turn] = left[size:]
        return np.sort(left[:size])


def fixed_size(records: int, rate: float, stream: KeyStream) -> NDArray[np.int64]:
    rng = np.random.default_rng(int.from_bytes(stream.take(4), "little"))
    return np.sort(rng.choice(records, round(rate * records), replace=False))


def one_batch(records: int, rate: float, stream: KeyStream) -> NDArray[np.int64]:
    return np.flatnonzero(np.random.default_rng(3).random(records) < rate)


@pytest.mark.parametrize("sampler", [Shuffled(), fixed_size, one_batch])
def test_other_samplers(machine: Machine, monkeypatch: pytest.MonkeyPatch, sampler: Callable[..., Any]) -> None:
    patch_everywhere(monkeypatch, "poisson_sample", sampler)
    assert faults(machine()) == {"sampler"}


def test_a_sensitivity_that_was_stated_too_low(machine: Machine) -> None:
    view = machine()
    low = replace(view.plan.encoding, l2_sensitivity=view.plan.encoding.l2_sensitivity * 0.8)
    assert faults(replace(view, plan=replace(view.plan, encoding=low))) >= {"sensitivity"}


def canary_verdict(rehearsal: Rehearsal) -> str:
    return judge_canaries(rehearsal, GradientCanaries()(rehearsal.releases())).verdict


def test_canaries_do_not_accuse_our_build(sound: Rehearsal) -> None:
    finding = judge_canaries(sound, GradientCanaries()(sound.releases()))
    assert finding.verdict == "passed"
    figures = finding.figures
    for name in ("steinke", "f-dp", "clopper-pearson"):
        low = figures[f"epsilon lower bound: {name}"]
        most = figures[f"attainable with 400 coins: {name}"]
        assert isinstance(low, float) and isinstance(most, float) and low <= most
    assert "epsilon estimate: gaussian-estimate" in figures


def test_canaries_contradict_a_strong_claim_over_weak_noise(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """At epsilon 1 the one-run bound has the power that it lacks at 8."""

    class Thinner(SkellamSampler):
        def __init__(self, variance: float) -> None:
            super().__init__(variance / 64)

    strict = load_config(
        None,
        [
            "federation.clients=5",
            "federation.rounds=6",
            "simulation.dropout=0.2",
            "data.records=500",
            "privacy.delta=0.0001",
            "privacy.sample_rate=0.25",
            "privacy.epsilon=1",
        ],
    )
    assert canary_verdict(rehearse(strict, system, canaries=600)) == "passed"
    patch_everywhere(monkeypatch, "SkellamSampler", Thinner)
    assert canary_verdict(rehearse(strict, system, canaries=600)) == "falsified"


def test_a_run_without_privacy_has_nothing_to_contradict() -> None:
    open_run = load_config(
        None, ["federation.clients=3", "simulation.dropout=0", "privacy.unit=none",
               "privacy.max_colluders=0", "federation.rounds=12", "data.records=300"]
    )  # fmt: skip
    rehearsal = rehearse(open_run, lambda index: SystemKeySource(), canaries=100)
    scores = GradientCanaries()(rehearsal.releases())
    finding = judge_canaries(rehearsal, scores)
    assert finding.verdict == "skipped"
    # ... and the canaries that were ever drawn are plain to see
    assert finding.figures["epsilon lower bound: steinke"] > 1.0  # type: ignore[operator]


def released_faults(config: Config) -> set[str]:
    found = drive(config)
    assert found is not None
    return {check for check, good, *_ in released_findings(found) if not good}


def test_our_released_sums_pass(config: Config) -> None:
    assert released_faults(config) == set()


def test_a_vector_divided_by_the_realised_batch(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    real = GradientSum.release

    def mean(self: GradientSum, adapter: Any, number: int, keys: KeySource) -> NDArray[np.float64]:
        sizes: list[int] = []
        task = self._task
        clipped = task.clipped_sum

        def counted(a: Any, indices: NDArray[np.int64], n: int) -> NDArray[np.float64]:
            sizes.append(len(indices))
            return clipped(a, indices, n)

        monkeypatch.setattr(task, "clipped_sum", counted)
        total = real(self, adapter, number, keys)
        return total / sizes[-1] if sizes and sizes[-1] else total

    monkeypatch.setattr(GradientSum, "release", mean)
    assert "released records" in released_faults(config)


def test_a_quarter_of_the_noise_whenever_there_are_records(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of no records, which the older noise check looks at, has all of it."""
    seen: list[bool] = []

    def noted(vector: NDArray[np.float64], *rest: Any) -> NDArray[np.int64]:
        seen[:] = [bool(np.any(vector))]
        return encode(vector, *rest)

    class Thinner(SkellamSampler):
        def __init__(self, variance: float) -> None:
            super().__init__(variance / 4 if seen[0] else variance)

    patch_everywhere(monkeypatch, "encode", noted)
    patch_everywhere(monkeypatch, "SkellamSampler", Thinner)
    assert "released noise" in released_faults(config)


def test_samples_of_one_record_are_dropped(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def several(records: int, rate: float, stream: KeyStream) -> NDArray[np.int64]:
        drawn = poisson_sample(records, rate, stream)
        return drawn if drawn.size != 1 else drawn[:0]

    patch_everywhere(monkeypatch, "poisson_sample", several)
    assert released_faults(config) == {"released records"}


def test_a_dither_that_is_a_public_constant(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def public(vector: NDArray[np.float64], plan: Any, rotation: bytes, dither: KeyStream) -> NDArray[np.int64]:
        return encode(vector, plan, rotation, KeyStream(bytes(32)))

    patch_everywhere(monkeypatch, "encode", public)
    assert released_faults(config) == {"released dither"}


def test_the_dither_key_used_for_the_noise(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _Keys.key

    def reused(self: _Keys, label: str) -> bytes:
        if label == "noise":
            return self.dither  # type: ignore[attr-defined, no-any-return]
        key = real(self, label)
        if label == "dither":
            self.dither = key  # type: ignore[attr-defined]
        return key

    monkeypatch.setattr(_Keys, "key", reused)
    assert {"released dither", "released noise"} <= released_faults(config)


def test_a_beta_that_the_event_leaves_out(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RunPlan.skellam_event
    monkeypatch.setattr(RunPlan, "skellam_event", lambda self: replace(real(self), beta=0.0))
    assert released_faults(config) == {"event"}


BANDED = ["privacy.mechanism=banded", "privacy.bands=4"]


@pytest.fixture
def banded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a maker of views of a run with four bands."""
    return functools.partial(machine, settings=BANDED, driven=True)


def test_our_banded_build_passes(banded: Machine) -> None:
    findings = Conformance()(banded())
    assert {f.check: f.verdict for f in findings if f.verdict != "passed"} == {}
    assert "released bands" in {f.check for f in findings}


def test_bands_out_of_step(banded: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round takes back the noise of the round before the last, in place of the last."""

    def late(fresh: NDArray[np.int64], past: Any, correlation: Any) -> NDArray[np.int64]:
        return correlate(fresh, {lag + 1: n for lag, n in past.items() if lag + 1 < len(correlation)}, correlation)

    patch_everywhere(monkeypatch, "correlate", late)
    assert {"released noise", "released bands"} <= faults(banded())


def test_a_noise_vector_used_twice(banded: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[int, NDArray[np.int64]] = {}

    class Sparing(SkellamSampler):
        def sample(self, stream: KeyStream, count: int) -> NDArray[np.int64]:
            drawn = super().sample(stream, count)
            kept = held.pop(count, None)
            if kept is None:
                held[count] = drawn
            return drawn if kept is None else kept

    patch_everywhere(monkeypatch, "SkellamSampler", Sparing)
    assert faults(banded())


def test_groups_by_the_servers_choice(banded: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups from a public key: the same at every client, and known to the server."""

    def public(self: BandedState, charged: int) -> None:
        self._key = bytes(32)

    monkeypatch.setattr(BandedState, "open", public)
    assert "sampler" in faults(banded(driven=False))


def test_groups_drawn_anew_in_every_round(banded: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    members = BandedState.members

    def anew(self: BandedState, records: int, number: int) -> NDArray[np.int64]:
        self._key = SystemKeySource().key("groups")
        return members(self, records, number)

    monkeypatch.setattr(BandedState, "members", anew)
    assert "sampler" in faults(banded(driven=False))
