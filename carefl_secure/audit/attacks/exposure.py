r"""How well a model remembers what it could not have guessed: exposure of planted secrets.

A secret is drawn at random from a space R, planted, and ranked by loss among its space afterwards.

.. math:: \mathrm{exposure} = \log_2 |R| - \log_2 \mathrm{rank}

A secret that was never planted has a rank that is uniform, and an exposure of 1.44 bits on average
for large R. One exposure is no bound on epsilon; a hundred secrets, planted by coin flips, are.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carefl_secure.audit.views import Attack, Figure, Finding
from carefl_secure.errors import ConfigError

Losses = npt.NDArray[np.float64]
_MOST_LABELS = 4
_ROWS = 64


@dataclass(frozen=True)
class ExposureView:
    """The losses, float64 [canaries, space], of each canary under every secret: all that is seen of a secret."""

    losses: Losses


class Exposure(Attack[ExposureView, Losses]):
    """Ranks every secret of the space by loss, ties at their middle.

    References
    ----------
    Carlini et al., "The Secret Sharer", USENIX Security 2019.
    """

    name = "exposure"
    adversary = "a user of the released adapter who guesses secrets"
    view = ExposureView

    def attack(self, view: ExposureView) -> Losses:
        """Return the exposure of every secret in bits, shape [canaries, space]."""
        space = view.losses.shape[1]
        ordered = np.sort(view.losses, axis=1)
        out = np.empty_like(view.losses)
        for row, (losses, order) in enumerate(zip(view.losses, ordered, strict=True)):
            below = np.searchsorted(order, losses, side="left")
            upto = np.searchsorted(order, losses, side="right")
            out[row] = math.log2(space) - np.log2((below + upto + 1) / 2)
        return out


def label_secrets(labels: int, chosen: int) -> npt.NDArray[np.bool_]:
    """Return every set of ``chosen`` of ``labels`` labels, bool [sets, labels], 100 000 at most."""
    count = math.comb(labels, chosen)
    if not 1 < count <= 100_000:
        raise ConfigError(f"{count} sets of {chosen} of {labels} labels are no space to rank in")
    out = np.zeros((count, labels), np.bool_)
    for row, members in enumerate(itertools.combinations(range(labels), chosen)):
        out[row, list(members)] = True
    return out


def secret_losses(scores: Losses, secrets: npt.NDArray[np.bool_]) -> Losses:
    r"""Return the loss of every record under every set of labels: [records, space].

    The mean binary cross-entropy of log-odds s (``scores``, [records, labels]) is :math:`\frac1K \left(\sum_k \log(1 +
    e^{s_k}) - \sum_{k \in S} s_k\right)`: linear in the set, a row of ``secrets``, bool [space, labels].
    """
    whole = np.logaddexp(0.0, scores).sum(axis=1, keepdims=True)
    return np.asarray((whole - scores @ secrets.T) / scores.shape[1], np.float64)


def natural_exposure(scores: Losses, targets: npt.NDArray[np.float32], multi: bool) -> npt.NDArray[np.float64]:
    """Return the exposure of the labels that records really carry, shape [records].

    Scores and targets are [records, labels]. Where several labels may hold (``multi``), a record of
    k labels is ranked among all sets of k. NaN for records of no label or of more than four.
    """
    out = np.full(len(scores), np.nan)
    labels, sizes = targets.shape[1], targets.sum(axis=1).astype(np.int64)
    for size in range(1, min(_MOST_LABELS, labels - 1) + 1):
        rows = np.flatnonzero(sizes == size)
        if not rows.size or (not multi and size > 1):
            continue
        secrets = label_secrets(labels, size)
        truth = (targets[rows] @ secrets.T).argmax(axis=1)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            losses = secret_losses(scores[rows[part]], secrets) if multi else -scores[rows[part]]
            out[rows[part]] = Exposure()(ExposureView(losses))[np.arange(len(losses)), truth[part]]
    return out


def judge_natural(
    base: npt.NDArray[np.float64], tuned: npt.NDArray[np.float64], member: npt.NDArray[np.bool_]
) -> Finding:
    """Compare the increase of exposure by training, of members' labels and of others'.

    Nothing was planted in a finished run, so these are the labels that records really carry, and a model that has
    learnt the task ranks them high for everybody. Only the difference between members and others speaks of memory.
    ``base`` and ``tuned`` are the exposures [records] before and after training; NaN where not known.
    """
    known = np.isfinite(base) & np.isfinite(tuned)
    gain = (tuned - base)[known]
    inside, outside = gain[member[known]], gain[~member[known]]
    if min(inside.size, outside.size) < 2:
        return Exposure.skip("labels", "Too few records carry one to four labels for exposures to be compared.")
    more = float(inside.mean() - outside.mean())
    error = math.sqrt(float(inside.var(ddof=1)) / inside.size + float(outside.var(ddof=1)) / outside.size)
    figures: dict[str, Figure] = {
        "gain of members": float(inside.mean()),
        "gain of others": float(outside.mean()),
        "members less others": more,
        "standard error": error,
        "members": int(inside.size),
        "others": int(outside.size),
    }
    words = (
        f"Training raised the exposure of members' labels by {inside.mean():.2f} bits and of "
        f"others' by {outside.mean():.2f}: {more:+.2f} more (standard error {error:.2f})."
    )
    return Finding(Exposure.name, "labels", "measured", words, figures)
