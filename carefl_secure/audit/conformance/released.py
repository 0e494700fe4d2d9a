"""Drives the released sums, client keys fixed, on neighbouring data and with single keys (dither, noise) changed."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from carefl_secure.audit.conformance.hypothesis_tests import noise_chances
from carefl_secure.audit.replay.canary_run import KnownTask, plan_like
from carefl_secure.audit.replay.recording import play
from carefl_secure.config import Config
from carefl_secure.federation.client.banded_state import BandedState
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import DeterministicKeySource, KeyStream
from carefl_secure.privacy import poisson_sample

_DIMENSION = 512
_ROUNDS = 8
_RECORDS = (1, 2, 40)  # by client in turn: samples of none, one and many records
_CHANCE = 1e-6

_Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReleasedSums:
    """Sums of rounds, shape [rounds, D], in clipping norms, of four runs with keys in common."""

    plan: RunPlan
    base: _Vector  # records with known gradients
    other_records: _Vector  # all gradients zero
    other_dither: _Vector  # another key for the dither
    other_noise: _Vector  # another key for the noise
    expected: _Vector  # what the records add to base, from the keys and the sampler of the library


class _Keys:
    """Fixed keys for every label, from another seed for some labels."""

    def __init__(self, index: int, changed: str | None) -> None:
        self._own = DeterministicKeySource(f"released/{index}".encode())
        self._changed = DeterministicKeySource(f"released/{index}/changed".encode())
        self._label = changed

    def key(self, label: str) -> bytes:
        return (self._changed if label == self._label else self._own).key(label)


def drive(config: Config) -> ReleasedSums | None:
    """Play the run's own release path; None where no Skellam noise hides single records."""
    if config.privacy.unit != "record" or config.privacy.trust != "secagg":
        return None
    plan = plan_like(config, _DIMENSION, max(_RECORDS), _ROUNDS)
    rng = np.random.default_rng(0)
    gradients: list[_Vector] = []
    for index in range(plan.privacy.clients):
        rows = rng.normal(size=(_RECORDS[index % len(_RECORDS)], _DIMENSION))
        rows *= 0.999 * plan.privacy.clipping_norm / np.linalg.norm(rows, axis=1, keepdims=True)
        gradients.append(rows)

    def sums(scale: float, changed: str | None) -> _Vector:
        tasks = [KnownTask(scale * rows, len(rows)) for rows in gradients]
        keys = functools.partial(_Keys, changed=changed)
        # what is released is the same under every protocol; pairwise masking is the fastest
        return play(config, keys, plan, tasks, aggregation="pairwise", dropout=False).sums

    expected = np.zeros((_ROUNDS, _DIMENSION))
    for index, rows in enumerate(gradients):
        keys = _Keys(index, None)
        groups = BandedState(plan, keys, None, signs=True)
        groups.open(0)
        for number in range(_ROUNDS):
            stream = KeyStream(keys.key("sample"))
            group = np.arange(len(rows)) if plan.privacy.bands == 1 else groups.members(len(rows), number + 1)
            drawn = group[poisson_sample(len(group), plan.privacy.round_rate, stream)]
            expected[number] += rows[drawn].sum(axis=0) / plan.privacy.clipping_norm
    return ReleasedSums(plan, sums(1.0, None), sums(0.0, None), sums(1.0, "dither"), sums(1.0, "noise"), expected)


Verdict = tuple[str, bool, str, Mapping[str, float | int]]


def released_findings(found: ReleasedSums) -> Iterator[Verdict]:
    """Yield name, whether it holds, words and figures of each check on the released sums."""
    plan, clients = found.plan, found.plan.privacy.clients
    unit = plan.encoding.scale * plan.encoding.clipping_norm  # integers in one clipping norm
    gap = np.abs(found.base - found.other_records - found.expected).max(axis=0)
    # two roundings of each client, spread by the rotation: far beyond six standard deviations
    allowed = (2.0 * clients + 10.0 * np.sqrt(clients)) / unit
    worst = float(gap.max()) / allowed
    words = (
        f"Records change the released sums as the sum of their clipped gradients does, up to "
        f"{worst:.2f} of what rounding allows, in rounds with samples of none, one and many."
    )
    yield "released records", worst <= 1.0, words, {"largest": worst}
    moved = float(np.linalg.norm(found.base - found.other_dither)) * unit
    most = clients * np.sqrt(found.base.shape[0] * plan.encoding.padded)
    words = (
        f"Other keys for the dither alone move the released integers by {moved:.4g}, of at "
        f"most {most:.4g} that rounding can; none at all would mean that the dither is public."
    )
    yield "released dither", 0.0 < moved <= most, words, {"moved": moved, "most": float(most)}
    variance = 2.0 * clients * plan.share_variance / (unit * plan.encoding.step) ** 2
    band = plan.privacy.correlation or (1,)
    fresh = lfilter(np.array(band) / band[0], [1.0], found.base - found.other_noise, axis=0) / np.sqrt(variance)
    scale, shape = noise_chances(fresh.ravel())
    words = (
        f"With records present the released noise has the planned law (p {scale:.2g} for the "
        f"scale, {shape:.2g} for the shape)."
    )
    yield "released noise", min(scale, shape) > _CHANCE, words, {"p_scale": scale, "p_shape": shape}
    if len(band) > 1:
        alike = np.corrcoef(fresh)[np.triu_indices(len(fresh), 1)]
        largest = float(np.abs(alike).max() * np.sqrt(fresh.shape[1]))
        words = (
            f"Once what rounds take back is put in again, the noise of two rounds correlates by {largest:.2f} "
            "standard errors at most: no noise is used twice or taken back in another round."
        )
        yield "released bands", largest < 6.0, words, {"standard_errors": largest}
    event, encoding, honest = plan.skellam_event(), plan.encoding, plan.privacy.noise_clients
    slack = 1.0 - 1e-9
    # the noise of one client against its part of a record in all rounds of the band, or all noise against a record
    counted, parts = (plan.share_variance * honest, 1) if len(band) == 1 else (plan.share_variance, honest * len(band))
    longer = math.sqrt(honest * sum(m**2 for m in band)) if len(band) > 1 else 1.0
    good = (
        event.beta >= encoding.dither_failure
        and event.l1 >= slack * longer * encoding.l1_sensitivity
        and event.l2 >= slack * longer * encoding.l2_sensitivity
        and slack * event.variance <= counted
        and event.sample_rate >= slack * plan.privacy.round_rate
        and (event.dimension or 0) >= encoding.padded * parts
    )
    words = (
        f"The priced event counts beta {event.beta:.3g} (the rounding fails with probability "
        f"{encoding.dither_failure:.3g}), and the encoding's norms, noise and dimension."
    )
    yield "event", good, words, {"beta": event.beta, "dither_failure": encoding.dither_failure}
