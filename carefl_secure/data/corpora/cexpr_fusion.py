"""From scores of frames to scores of videos, and from eleven compound classes to seven."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from carefl_secure.data.records import CEXPR, COMPOUND, COMPOUND_TO_CEXPR
from carefl_secure.errors import ConfigError, NonFiniteError

Floats = npt.NDArray[np.float64]
Rule = Literal["majority", "mean_probability", "mean_logit"]
_TIE = 1e-9
RULES: tuple[Rule, ...] = ("majority", "mean_probability", "mean_logit")


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


def _finite(scores: npt.NDArray[Any]) -> Floats:
    values = np.asarray(scores, np.float64)
    if values.ndim != 2:
        raise ConfigError(f"scores have the shape [frames, classes], not {list(values.shape)}")
    if not np.isfinite(values).all():
        raise NonFiniteError("the scores of some frames are not finite; nothing can be fused")
    return values


def fuse_frames(
    logits: npt.NDArray[Any], videos: Sequence[str], rule: Rule = "mean_probability"
) -> tuple[list[str], Floats]:
    r"""Turn scores of frames into scores of videos; return the videos, sorted, and their scores [videos, 7].

    With the logits :math:`z_{fk}` of the :math:`F` frames of one video, ``majority`` gives class :math:`k` the share
    of frames whose highest logit is :math:`k`, ``mean_probability`` gives
    :math:`\frac1F \sum_f \mathrm{softmax}(z_f)_k`, and ``mean_logit`` gives
    :math:`\mathrm{softmax}(\frac1F \sum_f z_f)_k`. A tie of the majority goes to the class with the higher mean
    probability. Rows sum to 1, with ``majority`` to within 1e-9, which settles ties. A result must name its rule.

    ``logits`` [frames, 7] may be log-probabilities; an eighth column, the class Other, is dropped first. ``videos``
    names the video of each frame. A NaN or infinite score raises `NonFiniteError`.
    """
    if rule not in RULES:
        raise ConfigError(f"unknown rule {rule!r}; choose one of {', '.join(RULES)}")
    values = _finite(logits)
    classes = len(CEXPR.labels)
    if values.shape[1] not in (classes, classes + 1) or len(values) != len(videos):
        raise ConfigError(
            f"scores of shape {list(values.shape)} do not fit {len(videos)} frames and "
            f"{classes} classes (with or without Other)"
        )
    values = values[:, :classes]
    names = sorted(set(videos))
    owner = np.array([names.index(video) for video in videos], np.int64)
    out = np.empty((len(names), classes))
    for k in range(len(names)):
        mine = values[owner == k]
        likely = _softmax(mine).mean(axis=0)
        if rule == "majority":
            votes = np.bincount(mine.argmax(axis=1), minlength=classes)
            best = int(np.lexsort((likely, votes))[-1])
            out[k] = votes / len(mine)
            out[k, best] += _TIE
        elif rule == "mean_probability":
            out[k] = likely
        else:
            out[k] = _softmax(mine.mean(axis=0, keepdims=True))[0]
    return names, out


def compound_to_cexpr(logits: npt.NDArray[Any]) -> Floats:
    """Turn finite scores of RAF-DB's eleven compound classes into C-EXPR's probabilities [frames, 7]; mask four."""
    values = _finite(logits)
    if values.shape[1] != len(COMPOUND.labels):
        raise ConfigError(f"expected {len(COMPOUND.labels)} classes, not {values.shape[1]}")
    order = sorted(COMPOUND_TO_CEXPR, key=COMPOUND_TO_CEXPR.__getitem__)
    return _softmax(values[:, order])
