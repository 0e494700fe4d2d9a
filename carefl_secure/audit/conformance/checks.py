"""Does the mechanism do what its price was computed for? Answers in a second, part by part."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from carefl_secure.audit.conformance.hypothesis_tests import noise_chances, sampler_test
from carefl_secure.audit.conformance.released import ReleasedSums, released_findings
from carefl_secure.audit.replay.recording import Rehearsal
from carefl_secure.audit.views import Attack, Finding
from carefl_secure.federation.local_update.choice import local_work
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import KeyStream, SystemKeySource
from carefl_secure.privacy import SampledSkellam
from carefl_secure.secagg import encode

_CHANCE = 1e-6
_ROUNDING = 1e-6
_LOSS_TOLERANCE = 1e-4
_TRIALS = 20


class Probe(Protocol):
    """A client's learning, opened up for its own auditor."""

    @property
    def task(self) -> LocalTask:
        """The task as the federation uses it."""

    def losses(self, indices: npt.NDArray[np.int64], disturbed: int | None) -> npt.NDArray[np.float64]:
        """Return the losses of some records, with one of them replaced by noise if asked."""


@dataclass(frozen=True)
class MachineView:
    """What the auditor of one's own machine may look at: everything."""

    plan: RunPlan
    rehearsal: Rehearsal  # a run on canaries, for the sampler
    quiet: tuple[Rehearsal, Rehearsal]  # on no records, under one seed, with the run's own dimension: pure noise
    probe: Probe  # the real task with a few real records
    adapter: npt.NDArray[np.float32]  # [D], where gradients are taken
    released: ReleasedSums | None  # of runs with keys in common; None where no Skellam noise hides single records


class Conformance(Attack[MachineView, list[Finding]]):
    """Checks noise, its freshness, clipping, sensitivity, sampler and independence of losses."""

    name = "conformance"
    adversary = "the auditor of one's own machine"
    view = MachineView

    def attack(self, view: MachineView) -> list[Finding]:
        """Return one finding per check."""
        return [
            *self._noise(view),
            *self._bounds(view),
            self._independence(view),
            self._sampler(view),
            *self._sensitivity(view),
            *self._released(view),
        ]

    def _released(self, view: MachineView) -> Iterator[Finding]:
        if view.released is None:
            words = "No Skellam noise hides single records, so no released integers are driven."
            yield self.skip("released records", words)
            return
        for check, good, words, figures in released_findings(view.released):
            yield self._finding(check, good, words, **figures)

    def _finding(self, check: str, good: bool, words: str, **figures: float | int) -> Finding:
        return Finding(self.name, check, "passed" if good else "falsified", words, figures)

    def _noise(self, view: MachineView) -> Iterator[Finding]:
        if not view.plan.protected:
            yield self.skip("noise", "The run claims no privacy and adds no noise.")
            return
        first, second = (q.fresh().ravel() for q in view.quiet)
        scale, shape = noise_chances(first)
        deviation = float(np.sqrt(np.mean(first**2)))
        yield self._finding(
            "noise",
            min(scale, shape) > _CHANCE,
            f"A round of no records opened to noise of {deviation:.4f} times the planned standard deviation over "
            f"{first.size} entries (p {scale:.2g} for the scale, {shape:.2g} for the shape).",
            p_scale=scale,
            p_shape=shape,
            relative_deviation=deviation,
            entries=first.size,
        )
        likeness = float(np.corrcoef(first, second)[0, 1]) * np.sqrt(first.size)
        yield self._finding(
            "fresh noise",
            abs(likeness) < 6.0,
            f"The noise of two runs of one seed correlates by {likeness:.2f} standard errors.",
            standard_errors=likeness,
        )

    def _bounds(self, view: MachineView) -> Iterator[Finding]:
        """Measure what a client or each record alone releases, and what leaving one record out changes."""
        task, numbers = view.probe.task, (1, 2)
        if view.plan.privacy.unit == "client":
            work = local_work(view.plan, task, 0)
            released = [work.release(view.adapter, number, SystemKeySource()) for number in numbers]
            words = f"What a client of {task.records} records moves in a round is {{}} of the clipping norm at most."
        else:
            alone = [np.array([i]) for i in range(task.records)]
            released = [task.clipped_sum(view.adapter, one, number) for one in alone for number in numbers]
            words = f"The largest of {task.records} records alone moves the sum by {{}} of the clipping norm."
        worst = max(float(np.linalg.norm(one)) for one in released) / view.plan.privacy.clipping_norm
        text = words.format(f"{worst:.7f}")
        yield self._finding("clipping", worst <= 1.0 + _ROUNDING, text, largest=worst, records=task.records)
        if view.plan.privacy.unit == "client":
            yield self.skip("remove one", "The run bounds whole clients, not single records.")
        else:
            yield self._remove_one(view)

    def _remove_one(self, view: MachineView) -> Finding:
        """Remove each record of a batch in turn, which a mean over the batch would fail."""
        task, bound = view.probe.task, view.plan.privacy.clipping_norm
        everyone = np.arange(task.records)
        whole = task.clipped_sum(view.adapter, everyone, 1)
        changes = [
            np.linalg.norm(whole - task.clipped_sum(view.adapter, np.delete(everyone, i), 1))
            for i in everyone[: max(2, min(8, task.records))]
        ]
        worst = float(max(changes)) / bound
        return self._finding(
            "remove one",
            # Float32 gradients of other batch shapes differ in their last bits.
            worst <= 1.0 + 1e-3,
            f"Taking one record out of a batch of {task.records} changes the sum by {worst:.5f} "
            "of the clipping norm at most.",
            largest=worst,
        )

    def _independence(self, view: MachineView) -> Finding:
        count = view.probe.task.records
        everyone = np.arange(count)
        before = view.probe.losses(everyone, None)
        after = view.probe.losses(everyone, 0)
        moved = float(np.max(np.abs(after[1:] - before[1:]) / (1.0 + np.abs(before[1:]))))
        own = float(abs(after[0] - before[0]))
        return self._finding(
            "independent losses",
            moved <= _LOSS_TOLERANCE < own,
            f"Replacing one record by noise moved its own loss by {own:.3g} and the losses of the "
            f"{count - 1} others in its batch by {moved:.2g} at most.",
            others=moved,
            own=own,
        )

    def _sampler(self, view: MachineView) -> Finding:
        rehearsal, rate = view.rehearsal, view.plan.privacy.sample_rate
        by_client: dict[int, list[npt.NDArray[np.int64]]] = defaultdict(list)
        for batch in rehearsal.batches:
            by_client[batch.client].append(batch.indices)
        if rehearsal.records * rate < 10 or not by_client:
            words = "Too few records are drawn in a round for the sampler to be judged."
            return Finding(self.name, "sampler", "measured", words, {})
        if view.plan.privacy.bands > 1:
            return self._groups(view, rehearsal)
        test = sampler_test(by_client, rehearsal.records, rate)
        return self._finding(
            "sampler",
            test.worst > _CHANCE,
            f"{len(rehearsal.batches)} samples at rate {rate:g}: p {test.mean:.2g} for their mean "
            f"size, {test.size_variance:.2g} for its variance, {test.spread:.2g} for how often "
            f"each record came; {test.repeats} repeated.",
            p_mean=test.mean,
            p_size_variance=test.size_variance,
            p_spread=test.spread,
            repeats=test.repeats,
        )

    def _groups(self, view: MachineView, rehearsal: Rehearsal) -> Finding:
        """Test that each record has rounds of one group only, which its client alone drew."""
        privacy, bands = view.plan.privacy, view.plan.privacy.bands
        owner = {i: np.full(rehearsal.records, -1) for i in range(privacy.clients)}
        strays = drawn = 0
        for batch in rehearsal.batches:
            known = owner[batch.client][batch.indices]
            strays += int(np.sum((known >= 0) & (known != batch.round % bands)))
            owner[batch.client][batch.indices] = batch.round % bands
            drawn += len(batch.indices)
        alike = min(
            float(binomtest(int(np.sum((a == b) & (a >= 0))), int(np.sum((a >= 0) & (b >= 0))), 1 / bands).pvalue)
            for a, b in itertools.pairwise(owner.values())
        )
        rate, held = privacy.round_rate, privacy.clients * rehearsal.records
        turns = np.bincount([n % bands for n in {b.round for b in rehearsal.batches}], minlength=bands)
        variance = float(np.mean(turns) * rate * (1.0 - rate) + rate**2 * np.var(turns))
        off = (drawn - held * float(np.mean(turns)) * rate) / math.sqrt(max(held * variance, 1e-9))
        return self._finding(
            "sampler",
            strays == 0 and alike > _CHANCE and abs(off) < 6.0,
            f"{strays} draws of another group than the round's; p {alike:.2g} for how alike clients' groups are; "
            f"{drawn} draws, {off:.2f} standard errors from the rate.",
            **{"strays": strays, "p_alike": alike, "standard_errors": off},
        )

    def _sensitivity(self, view: MachineView) -> Iterator[Finding]:
        """Round neighbours with one dither: what a record changes in integers."""
        plan = view.plan
        if not isinstance(plan.event, SampledSkellam):
            yield self.skip("sensitivity", "No noise is shared in integers, so nothing has a bound in integers.")
            return
        encoding, rng = plan.encoding, np.random.default_rng(0)
        l1, l2 = 0.0, 0.0
        for trial in range(_TRIALS):
            base = rng.normal(size=encoding.dimension)
            base *= 0.5 * encoding.vector_bound / np.linalg.norm(base)
            one = rng.normal(size=encoding.dimension) if trial % 2 else np.zeros_like(base)
            if not trial % 2:
                one[int(rng.integers(encoding.dimension))] = 1.0
            one *= encoding.clipping_norm / np.linalg.norm(one)
            dither, rotation = SystemKeySource().key("dither"), SystemKeySource().key("rotation")
            change = encode(base + one, encoding, rotation, KeyStream(dither))
            change -= encode(base, encoding, rotation, KeyStream(dither))
            l1 = max(l1, float(np.abs(change).sum()) / (encoding.step * encoding.l1_sensitivity))
            l2 = max(l2, float(np.linalg.norm(change)) / (encoding.step * encoding.l2_sensitivity))
        yield self._finding(
            "sensitivity",
            max(l1, l2) <= 1.0,
            f"One record of full length changes the integers by {l1:.3f} of the stated 1-norm and "
            f"{l2:.3f} of the 2-norm at most, over {_TRIALS} trials.",
            l1=l1,
            l2=l2,
        )
