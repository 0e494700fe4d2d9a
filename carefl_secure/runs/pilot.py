r"""The server's learning rate under ``auto``: a rule by the model's size, tested by a pilot on public records.

An aligned step of Adam at rate :math:`\eta` changes the outputs of each of L layers of width d in proportion to
:math:`\eta`, so the rule is :math:`\eta = 1.1 f / (L \sqrt d)`, rounded to 1 or 3 times a power of ten: 0.03 for the
embedded model and 0.001 for SmolVLM2 at 256M to 2.2B (``docs/defaults.md``). Adam divides by the root mean square of
all that a round opens, so of a step under noise of r times the mean gradient's norm :math:`1 / \sqrt{1 + r^2}` is
signal. Part of that is made up for: :math:`f = \min(1.75, \sqrt{1 + r^2 / 4})`.

The pilot takes the plan's own steps: clipping and optimizer are the run's. Batches are smaller, which the noise makes
up for (`pilot_noise`), and rounds at most 20. Every rate sees the same batches and noise. Rates are compared by mAP on
held-out records: under noise the loss prefers rates that hardly move. No private record is read, so the pilot costs no
privacy, and its noise may be predictable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config
from carefl_secure.errors import NonFiniteError
from carefl_secure.evaluation.figures import Figures
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server.optimizers import Listener
from carefl_secure.privacy.banded import response
from carefl_secure.progress import Reporter
from carefl_secure.runs.build import grid_rate, make_optimizer, rule_rate, survivors_of
from carefl_secure.runs.client_task import ModelTask, Vector

_SHARE = 0.08  # of the gradients that the run computes
_ROUNDS, _FEWEST = 20, 4
_BATCH, _HELD = 16, 256  # the smallest batch, and the most records, that rates are compared on
_MARGIN = 0.3  # over the root of the held-out records, about two standard errors: the mAP that beats the rule's
_POSITIVES = 4  # fewest held-out records of a label that rates are compared on: AP of one record is nearly chance
_TASK = "pilot on public records"


@dataclass(frozen=True)
class Rate:
    """The chosen rate, how it was chosen, and mAP by rate: 0 is the untuned model, None stands for divergence."""

    server_lr: float
    sentence: str
    curve: tuple[tuple[float, float | None], ...] = ()


def choose_rate(config: Config, plan: RunPlan, task: ModelTask, update: float, reporter: Reporter) -> Rate:
    """Resolve ``federation.server_lr``; deterministic, given the seeds.

    ``update`` is the norm of the mean gradient (`forecast`), which plain descent needs for its rule. The rule's rate
    stands, and the sentence says why, where clients take local steps, the run is too short for a pilot, or the public
    records are too few; and unless another rate of the grid is clearly better than it and than the untuned model.
    """
    if config.server_lr is not None:
        return Rate(config.server_lr, f"server learning rate {config.server_lr:g}, as set")
    adapter = task.losses.scorer.adapter
    left, root = survivors_of(config), math.sqrt(adapter.dimension)
    noise = plan.noise_norm(left) if plan.protected else 0.0
    rule = rule_rate(adapter, noise / max(update, 1e-12))
    if config.federation.aggregator == "fedavg":  # the same step in every entry, at the norm that rounds open
        rule = grid_rate(rule * root / max(math.hypot(update, noise), 1e-12) * (1.0 - config.federation.momentum))
    rounds, batch = size = pilot_size(plan, task.records)
    if plan.local is not None or batch < _BATCH:
        few = f"{task.records} public records and {plan.privacy.rounds} rounds of {plan.privacy.expected_batch:.0f}"
        why = f"{few} are too few for one" if plan.local is None else "clients take local steps"
        return Rate(rule, f"server learning rate {rule:g} by the rule for the model's size; NO PILOT, as {why}")
    order = np.random.default_rng([config.run.seed, config.data.seed]).permutation(task.records)
    held, train = np.split(order, [min(_HELD, task.records // 2)])
    start, truth = adapter.vector(), task.losses.targets(held)
    enough = truth.sum(0) >= _POSITIVES
    seen = enough if enough.any() else truth.any(0)
    added = pilot_noise(plan, left, update, min(batch, len(train))) / root

    def score(rate: float) -> float | None:
        adapter.load(start)
        try:
            if rate:
                chosen = config.with_server_lr(rate)
                band = plan.privacy.correlation or (1,)
                adapter.load(simulate(chosen, task, train, size, added, band, noise / root))
            return Figures(truth[:, seen], task.losses.scores(held)[:, seen], multi=True, names=("mAP",))()["mAP"]
        except NonFiniteError:
            return None
        finally:
            reporter.advance(_TASK)

    reporter.start(_TASK, 4)
    untuned, found = score(0.0), {rate: score(rate) for rate in (rule, _next(rule, -1), _next(rule, 1))}
    for _ in range(2):
        best = _best(found, rule, untuned or 0.0, _MARGIN / math.sqrt(len(held)))
        if best != rule and best in (min(found), max(found)):
            further = _next(best, -1 if best < rule else 1)
            found[further] = score(further)
    best = _best(found, rule, untuned or 0.0, _MARGIN / math.sqrt(len(held)))
    adapter.load(start)
    reporter.finish(_TASK)
    curve = ((0.0, untuned), *sorted(found.items()))
    shown = ", ".join(f"{rate:g}: {'diverged' if value is None else f'{value:.3f}'}" for rate, value in curve)
    by = f"a pilot on public records ({rounds} rounds of {batch}; mAP by rate, 0 untuned: {shown})"
    return Rate(best, f"server learning rate {best:g}, by {by}", curve)


def pilot_size(plan: RunPlan, records: int) -> tuple[int, int]:
    """Return rounds and batch of a pilot of three rates that costs 8 % of the run's gradients."""
    each = plan.privacy.rounds * plan.privacy.expected_batch * _SHARE / 3
    rounds = max(1, min(_ROUNDS, plan.privacy.rounds, max(_FEWEST, int(each / _BATCH))))
    return rounds, int(min(each / rounds, records // 2))


def pilot_noise(plan: RunPlan, survivors: int, update: float, batch: int) -> float:
    r"""Return the norm of the noise in the mean gradient of a pilot's round of ``batch`` records.

    A mean of b gradients that are scaled to norm C, whose own mean is :math:`\mu`, has sampling noise of norm
    :math:`s / \sqrt b` with :math:`s^2 = C^2 - \lVert\mu\rVert^2`. So that a pilot's round of b records is as noisy as
    a round of B with noise of norm :math:`\nu`, the pilot adds noise of norm

    .. math:: \sqrt{\max(0,\; \nu^2 + s^2 / B - s^2 / b)}

    and is noisier than a round where the difference is below 0, as without privacy. ``update`` is
    :math:`\lVert\mu\rVert` or more. Where gradients are clipped and not scaled, s is not known, and the noise stays
    :math:`\nu`.
    """
    if not plan.protected:
        return 0.0
    privacy, noise = plan.privacy, plan.noise_norm(survivors)
    if not privacy.normalise:
        return noise
    spread = max(0.0, privacy.clipping_norm**2 - update**2)
    return math.sqrt(max(0.0, noise**2 + spread / plan.expected_batch(survivors) - spread / batch))


def simulate(
    config: Config, task: ModelTask, records: npt.NDArray[np.int64], size: tuple[int, int], deviation: float,
    correlation: Sequence[int] = (1,), stated: float | None = None, done: Callable[[], object] | None = None,
) -> Vector:  # fmt: skip
    """Take rounds of a batch each on public records, from the adapter as it is, under noise in every entry.

    The optimizer is given the deviation ``stated`` of an entry's noise; by default the one that is added. ``done`` is
    called after each round.
    """
    given = (deviation if stated is None else stated) ** 2
    fresh = deviation / math.sqrt(float(np.sum(response(correlation, config.federation.rounds) ** 2)))
    noise: list[npt.NDArray[np.float64]] = []
    rng, adapter = np.random.default_rng([config.run.seed, config.data.seed, 1]), task.losses.scorer.adapter
    optimizer, point = make_optimizer(config, adapter), adapter.vector()
    for number in range(1, size[0] + 1):
        drawn = np.sort(rng.choice(records, min(size[1], len(records)), replace=False))
        taken = [m / correlation[0] * n for m, n in zip(correlation[1:], reversed(noise), strict=False)]
        noise.append(fresh * rng.normal(size=point.size) - sum(taken, np.zeros(point.size)))
        gradient = task.clipped_sum(point, drawn, number) / len(drawn) + noise[-1]
        if isinstance(optimizer, Listener):
            optimizer.observe(1.0, given)
        point = optimizer.step(point, gradient)
        if done is not None:
            done()
    return point


def _best(found: dict[float, float | None], rule: float, untuned: float, margin: float) -> float:
    """Return the rate nearest to the rule's of those as good as the best; the rule's unless it is clearly beaten."""
    fit = {rate: value for rate, value in found.items() if value is not None}
    best = max(fit, key=lambda rate: fit[rate], default=min(found))
    if rule in fit and fit[best] <= max(untuned, fit[rule]) + margin:
        return rule
    return min(
        (rate for rate in fit if fit[rate] >= fit[best] - margin), key=lambda r: abs(math.log(r / rule)), default=best
    )


def _next(rate: float, steps: int) -> float:
    return grid_rate(rate * 10.0 ** (steps / 2))
