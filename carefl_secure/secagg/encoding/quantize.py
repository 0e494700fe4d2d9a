"""Real vectors as integers that can be masked, and a sum of such integers as a real vector."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ConfigError, NonFiniteError
from carefl_secure.noise import KeyStream, uniform
from carefl_secure.secagg.encoding.hadamard import rotate, rotate_back
from carefl_secure.secagg.primitives.crypto import digest, refuse

NORM_SLACK = 1e-5
"""Relative excess of a norm that floating-point clipping and summing may cause."""

MAX_REDRAWS = 64
"""Tries of a conditional rounding before it is given up; see :func:`encode`."""


@dataclass(frozen=True)
class EncodingPlan:
    """How vectors become integers, and what one record can change in them. See ``planner.py``.

    Parameters
    ----------
    dimension, padded
        Length of the real vectors (D), and of the integer vectors: `padded_length` if rotated, else D.
    bits, scale
        Word size of the sum, 16 or 32; integer units per unit of the real vectors.
    clipping_norm
        Bound on the Euclidean norm of one record's contribution, in real units (C).
    vector_bound
        Bound on a client's vector, real units: its Euclidean norm if rotated, else the largest magnitude in it.
    noise_clients, noise_multiplier
        Honest survivors whose noise alone reaches the target; the multiplier planned for (z), 0 without noise.
    l1_sensitivity, l2_sensitivity, dither_failure
        What one record (one client, where the rounding is conditional) changes in the rounded vector, in integer
        units, except with probability ``dither_failure`` (beta) per round; 0 without noise, where none is promised.
    overflow_probability
        Upper bound for one coordinate of one round to wrap around. Wrapping costs accuracy, never privacy.
    conditional
        Whether :func:`encode` redraws the rounding until the integer vector is no longer than ``l2_sensitivity``. Only
        for unit client, where that vector is the whole difference between neighbours; ``dither_failure`` is 0 then.
    step
        Rounded vectors are multiplied by it, so that noise is made on a finer grid. The sensitivities are of
        the vector before, the variances below of integers as they are summed.
    noise_gain
        Variance of a client's noise in a round over that of the fresh noise in it: above 1 where rounds correlate.
    """

    dimension: int
    padded: int
    bits: int
    scale: float
    clipping_norm: float
    vector_bound: float
    clients: int
    noise_clients: int
    noise_multiplier: float
    l1_sensitivity: float
    l2_sensitivity: float
    dither_failure: float
    rotated: bool
    overflow_probability: float
    conditional: bool = False
    step: int = 1
    noise_gain: float = 1.0

    def total_variance(self) -> float:
        """Return ``(z * step * l2_sensitivity)**2``, the variance of the fresh noise in the sum, in integer units."""
        return (self.noise_multiplier * self.step * self.l2_sensitivity) ** 2

    def share_variance(self) -> float:
        """Return the variance of each client's fresh noise: the total divided by ``noise_clients``."""
        return self.total_variance() / self.noise_clients

    def round_variance(self) -> float:
        """Return a bound on the variance of all noise of a client in a round: earlier noise taken back is in it."""
        return self.share_variance() * self.noise_gain

    def fields(self) -> dict[str, Any]:
        """Return the fields by name; later ones only where they say something, so that older plans keep their hash."""
        defaults = {"conditional": False, "step": 1, "noise_gain": 1.0}
        return {name: value for name, value in asdict(self).items() if defaults.get(name) != value}

    @property
    def rounding_bound(self) -> float:
        """Hard bound on a decoded sum's rounding error, real units: Euclidean if rotated, else per coordinate."""
        if self.rotated:
            return self.clients * math.sqrt(self.padded) / self.scale
        return self.clients / (2 * self.scale)

    def hash(self) -> bytes:
        """Return 32 bytes over all fields, for ``RoundParameters.plan_hash``."""
        text = json.dumps(self.fields(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return digest(b"encoding plan", text.encode())


def _checked(vector: npt.NDArray[np.float64], plan: EncodingPlan) -> npt.NDArray[np.float64]:
    if vector.shape != (plan.dimension,) or vector.dtype != np.float64:
        raise refuse(
            "vector shape",
            f"the vector must be float64 of shape ({plan.dimension},), not {vector.dtype} of shape {vector.shape}",
        )
    if not np.isfinite(vector).all():
        raise NonFiniteError(
            "the vector to be summed holds NaN or infinity; nothing was sent;"
            " lower the learning rate or look at the losses of this client"
        )
    size = float(np.linalg.norm(vector)) if plan.rotated else float(np.abs(vector).max())
    if size > plan.vector_bound * (1 + NORM_SLACK):
        if plan.rotated:  # a refusal would tell about the records
            return vector * (plan.vector_bound / size)
        raise refuse(
            "vector bound",
            f"the vector exceeds the planned bound of {plan.vector_bound:g}; lower the learning rate of this client",
        )
    return vector


def encode(
    vector: npt.NDArray[np.float64],
    plan: EncodingPlan,
    rotation_key: bytes | None = None,
    dither: KeyStream | None = None,
) -> npt.NDArray[np.int64]:
    """Turn a client's vector into integers (int64, ``[padded]``), before noise and wrapping.

    Rotated plans: ``floor(scale * H S x + u)`` with ``S`` random signs, ``H`` the Hadamard matrix
    and one uniform ``u`` in ``[0, 1)`` per coordinate, times ``step``. Plans without noise: ``scale * x`` rounded
    to the nearest integer; they use neither key nor dither. Conditional plans draw ``u`` again from
    the same stream while the result is longer than ``l2_sensitivity``.

    Parameters
    ----------
    vector
        float64, shape ``[dimension]``: the sum of this client's clipped records.
    rotation_key
        32 bytes, public and the same for all clients of a round. Rotated plans need it and a dither.
    dither
        A stream whose key was drawn afresh for this call, is known to this client alone, and is never used again.
        Never encode a round's vector twice: conditional plans redraw here, as the sensitivity accounts for.

    Raises
    ------
    NonFiniteError
        If the vector holds NaN or infinity.
    ProtocolError
        If its shape is wrong, a vector without noise is larger than planned, or ``MAX_REDRAWS`` conditional
        roundings were all too long: with an honest plan that has probability below ``2**-1280``.

    Guarantees
    ----------
    Noised plans. A vector longer than planned is projected on the ball of that radius, which brings
    no two vectors further apart: whether a vector fits is not shown by a refusal.

    Client unit (conditional plans). The integer vector this returns has Euclidean norm at most ``l2_sensitivity``,
    *always*: it is computed exactly and checked. It is the whole difference to the neighbour without this client, so
    the round is a Skellam mechanism of that sensitivity with nothing to add to delta; replacing one client's vector by
    another is two such steps. By the bound below one draw is accepted with probability at least ``1 - beta``, ``beta =
    planner.REDRAW_PROBABILITY``. Conditioning biases the rounding by ``|E[rounded] - x|_2 <= sqrt(d) beta / (1 -
    beta)`` units for a client, as a coordinate changes by less than one unit (Kairouz, Liu and Steinke,
    arXiv:2102.06387, section 4); that is far below the noise. The number of redraws depends on the vector and shows
    only in the time taken; a redraw happens once in ``1 / beta`` rounds at most.

    Record unit. Let ``x`` and ``x + v`` be the scaled and rotated sums with and without one record, ``|v|_2 <= c =
    scale * clipping_norm``. Given the dither ``u``, which is drawn independently of the data and never released, the
    mechanism is noise on a fixed integer vector, and the record changes that vector by ``floor(x + v + u) - floor(x +
    u) = floor(v + w)`` with ``w = (x + u) mod 1``. For every fixed ``x`` the ``w`` are independent and uniform on
    ``[0, 1)``, so the change has the law of a stochastic rounding of the one record ``v``, however many records the
    sum holds. Its squared norm has mean at most ``c^2 + d/4`` and, by Hoeffding's inequality on the independent terms,
    except with probability ``beta`` over ``u``, ``l2^2 <= c^2 + d/4 + sqrt(2 ln(1/beta)) (c + sqrt(d)/2)`` with ``d =
    padded``. It is an integer vector, so ``l1 <= min(l2^2, sqrt(d) l2)``. Off the event of probability ``beta`` the
    round is therefore a Skellam mechanism of that sensitivity: add ``beta`` per round to delta.

    Assumptions: one dither per client and round, 53 random bits, from a secret fresh key, never redone; the rotation
    is the same for both neighbours; floating-point error in clipping, summing and rotating stays below ``NORM_SLACK``
    of the norm (the planner enlarges ``c`` by it). Adding ``u`` in double precision leaves at least ``52 - log2|x|``
    of its bits, a bias far below that slack. The argument is our own reading of Kairouz, Liu and Steinke (on
    stochastic rounding) and has not been reviewed.
    """
    checked = _checked(vector, plan)
    if not plan.rotated:
        return np.rint(checked * plan.scale).astype(np.int64)
    if rotation_key is None or dither is None:
        raise ConfigError("a rotated encoding plan needs a rotation key and a dither stream")
    scaled = rotate(checked, plan.padded, rotation_key)
    scaled *= plan.scale
    if plan.conditional:
        return _conditional(scaled, plan, dither)
    return _rounded(scaled, dither) * plan.step


def _rounded(scaled: npt.NDArray[np.float64], dither: KeyStream) -> npt.NDArray[np.int64]:
    """Round stochastically: ``floor(x + u)``."""
    return np.floor(scaled + uniform(dither, scaled.size)).astype(np.int64)


def _conditional(scaled: npt.NDArray[np.float64], plan: EncodingPlan, dither: KeyStream) -> npt.NDArray[np.int64]:
    """Round stochastically, given that the result is no longer than ``l2_sensitivity``."""
    for _ in range(MAX_REDRAWS):
        integers = _rounded(scaled, dither)
        # Exact: the squared norm is below (2**31 (1 + slack) + 2**15)**2, which fits in int64.
        if int(np.dot(integers, integers)) <= plan.l2_sensitivity**2:
            return integers
    raise refuse(
        "conditional rounding",
        f"{MAX_REDRAWS} draws were all longer than the sensitivity of {plan.l2_sensitivity:g}"
        " units; nothing was sent, the encoding plan is wrong: make it with plan_clients",
    )


def wrap(integers: npt.NDArray[np.int64], bits: int) -> npt.NDArray[Any]:
    """Reduce integers modulo ``2**bits`` (16 or 32 bits) to uint16 or uint32."""
    if bits not in (16, 32):
        raise ConfigError(f"a word has 16 or 32 bits, not {bits}")
    kind = np.uint16 if bits == 16 else np.uint32
    return (integers & np.int64((1 << bits) - 1)).astype(kind)


def decode(total: npt.NDArray[Any], plan: EncodingPlan, rotation_key: bytes | None = None) -> npt.NDArray[np.float64]:
    """Turn the opened sum (``[padded]`` words, read as signed) into a real vector: the sum, not the mean.

    Exact up to rounding and noise unless a coordinate of the sum left ``-2**(bits-1) .. 2**(bits-1) - 1``.
    """
    kind = np.dtype(np.uint16 if plan.bits == 16 else np.uint32)
    if total.dtype != kind or total.shape != (plan.padded,):
        raise refuse("sum shape", f"the sum must be {kind} of shape ({plan.padded},)")
    signed = total.view(np.int16 if plan.bits == 16 else np.int32)
    real = signed.astype(np.float64) / (plan.scale * plan.step)
    if not plan.rotated:
        return real
    if rotation_key is None:
        raise ConfigError("a rotated encoding plan needs its rotation key to decode")
    return rotate_back(real, plan.dimension, rotation_key)
