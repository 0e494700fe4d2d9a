"""Choosing scale and word size, and the bounds on rounding, sampling and wrapping behind the choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from carefl_secure.errors import ConfigError
from carefl_secure.secagg.encoding.hadamard import padded_length
from carefl_secure.secagg.encoding.quantize import NORM_SLACK, EncodingPlan
from carefl_secure.secagg.primitives.agreement import MIN_CLIENTS

DITHER_FAILURE = 1e-12
"""Probability per round that the rounding changes more than the stated sensitivity (beta)."""

_BATCH_TAIL = 2.0**-40

REDRAW_PROBABILITY = 2.0**-20
"""Bound on the probability that a conditional rounding is drawn again (beta there).

Kairouz, Liu and Steinke take ``exp(-1/2)``. This costs 0.1 % of the sensitivity at a million
coordinates and makes both the bias and the redraws negligible."""

MAX_OVERFLOW = 2.0**-20
"""Largest accepted probability that one coordinate of one round wraps around."""

_LARGEST_SCALED_NORM = 2.0**31


def rounded_sensitivity(scaled_norm: float, padded: int, failure: float = DITHER_FAILURE) -> tuple[float, float]:
    """Bound ``(l1, l2)`` of what one record changes after rounding, in integer units.

    With ``c = scaled_norm`` and ``d = padded``: ``l2 = min(sqrt(c^2 + d/4 + sqrt(2 ln(1/beta)) (c +
    sqrt(d)/2)), c + sqrt(d))`` and ``l1 = min(l2^2, sqrt(d) l2)``. The second bound on l2 holds
    always, the first except with probability ``beta``; ``encode`` has the argument.
    """
    root = math.sqrt(padded)
    tail = math.sqrt(2 * math.log(1 / failure)) * (scaled_norm + root / 2)
    l2 = min(math.sqrt(scaled_norm**2 + padded / 4 + tail), scaled_norm + root)
    return min(l2 * l2, root * l2), l2


def batch_bound(expected_batch: float) -> float:
    """Return a batch size that a Poisson sample exceeds with probability below ``2**-40``.

    Smallest ``N`` with ``exp(N - m - N ln(N / m)) <= 2**-40`` (Chernoff, for sums of independent choices of mean
    ``m``).
    """
    mean = expected_batch
    return smallest(lambda n: n - mean - n * math.log(n / mean) <= math.log(_BATCH_TAIL), mean, 100 + 20 * mean)


def overflow_bound(bits: int, proxy: float, skellam_variance: float) -> float:
    """Bound the probability that one coordinate of the sum leaves the signed range.

    With a sub-Gaussian part of variance proxy ``a`` and a Skellam part of variance ``m``, by Chernoff, at most ``2
    exp(t^2 a / 2 + m (cosh t - 1) - t R)`` for ``R = 2**(bits-1) - 1`` and every ``t > 0``; the best solves ``a t + m
    sinh t = R``.
    """
    reach = 2.0 ** (bits - 1) - 1
    if proxy + skellam_variance <= 0:
        return 0.0

    def slope(t: float) -> float:
        return proxy * t + skellam_variance * math.sinh(t)

    best = smallest(lambda t: slope(t) >= reach, 0.0, min(50.0, reach / (proxy + skellam_variance)))
    growth = skellam_variance * 2 * math.sinh(best / 2) ** 2  # cosh t - 1 without cancellation
    return min(1.0, 2 * math.exp(min(0.0, best * best * proxy / 2 + growth - best * reach)))


def smallest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Bisect for the smallest argument from which on ``holds`` is true."""
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be positive and finite, not {value}")


def plan_records(
    dimension: int,
    clipping_norm: float,
    noise_multiplier: float,
    expected_batch: float,
    clients: int,
    noise_clients: int,
    inflation: float = 1.01,
) -> EncodingPlan:
    """Plan the encoding for the record unit: every client sends a noisy sum of clipped records.

    The scale is the smallest at which rounding costs a factor ``inflation > 1`` of noise at most: ``sqrt((z l2)^2 +
    clients / 4) <= inflation * z * c`` with ``c = scale * clipping_norm``. The word has 16 bits if the sum then wraps
    with probability at most ``MAX_OVERFLOW`` per coordinate even if all records point the same way, else 32; a longer
    word is refused.

    Parameters
    ----------
    clipping_norm, noise_multiplier
        Bound on one record's Euclidean norm (C), real units; the sum's noise over its l2 sensitivity (z).
    expected_batch
        Expected number of records in a round, over all clients.
    noise_clients
        Honest survivors that the noise is sized for: the min_survivors less the colluders.

    Guarantees
    ----------
    With at least ``noise_clients`` honest survivors, each adding Skellam noise of ``share_variance()``, the noise in
    the sum has at least ``total_variance()``; the sensitivity is that of :func:`rounded_sensitivity` for neighbours
    that differ by one added or removed record, under the assumptions stated at ``encode``, which projects a vector
    longer than ``batch_bound(expected_batch) * clipping_norm``: with honest sampling in less than one of ``2**40``
    rounds.
    """
    _positive(clipping_norm=clipping_norm, noise_multiplier=noise_multiplier, expected_batch=expected_batch)
    numbers = (dimension, clipping_norm, noise_multiplier, clients, noise_clients, inflation)
    return _plan_noised(*numbers, together=batch_bound(expected_batch), conditional=False)


def plan_clients(
    dimension: int,
    clipping_norm: float,
    noise_multiplier: float,
    clients: int,
    noise_clients: int,
    inflation: float = 1.01,
) -> EncodingPlan:
    """Plan the encoding for the client unit: every client sends one noisy vector of bounded norm.

    Neighbours differ by one client's whole vector, so the rounding can be conditioned on the norm of its result (see
    ``encode``) and the sensitivity always holds. Scale and word are as in :func:`plan_records`, for ``clients``
    vectors that all point the same way; ``clipping_norm`` bounds one client's Euclidean norm (C).

    Guarantees
    ----------
    ``l2_sensitivity`` bounds the integer vector of every client, always, and ``l1_sensitivity = min(l2^2, sqrt(padded)
    l2)``; ``dither_failure`` is 0. With at least ``noise_clients`` honest survivors, each adding Skellam noise of
    ``share_variance()``, the noise in the sum has at least ``total_variance()``. ``overflow_probability`` accounts for
    the conditioning, which multiplies the probability of any event by at most ``(1 - beta)**-clients``.
    """
    _positive(clipping_norm=clipping_norm, noise_multiplier=noise_multiplier)
    numbers = (dimension, clipping_norm, noise_multiplier, clients, noise_clients, inflation)
    return _plan_noised(*numbers, together=clients, conditional=True)


def _plan_noised(
    dimension: int,
    clipping_norm: float,
    noise_multiplier: float,
    clients: int,
    noise_clients: int,
    inflation: float,
    *,
    together: float,
    conditional: bool,
) -> EncodingPlan:
    """Choose scale and word for noised sums of ``together`` vectors that point the same way."""
    _check_counts(dimension, clients)
    if not 1 <= noise_clients <= clients:
        raise ConfigError(f"noise_clients must lie in 1 .. {clients}, not {noise_clients}")
    if not (math.isfinite(inflation) and inflation > 1):
        raise ConfigError(f"inflation must be above 1 and finite, not {inflation}")
    failure = REDRAW_PROBABILITY if conditional else DITHER_FAILURE
    padded = padded_length(dimension)

    def sensitivity(scaled_norm: float) -> tuple[float, float]:
        return rounded_sensitivity(scaled_norm * (1 + NORM_SLACK), padded, failure)

    def fine_enough(scaled_norm: float) -> bool:
        noise = math.hypot(noise_multiplier * sensitivity(scaled_norm)[1], math.sqrt(clients) / 2)
        return noise <= inflation * noise_multiplier * scaled_norm

    # The clipping norm in integer units, the smallest fine enough.
    scaled_norm = smallest(fine_enough, 1e-3, _LARGEST_SCALED_NORM)
    l1, l2 = sensitivity(scaled_norm)
    slack, factor = 1.0, 1.0
    if conditional:  # rounding may reach the slack, and redrawing makes every event likelier
        slack = 1 + NORM_SLACK
        factor = math.exp(-clients * math.log1p(-failure))
    proxy = (scaled_norm * slack * together) ** 2 / padded + clients / 4
    variance = (noise_multiplier * l2) ** 2 * clients / noise_clients
    bits, overflow = _word(proxy, variance, factor)
    return EncodingPlan(
        dimension=dimension,
        padded=padded,
        bits=bits,
        scale=scaled_norm / clipping_norm,
        clipping_norm=clipping_norm,
        vector_bound=clipping_norm * (1 if conditional else together),
        clients=clients,
        noise_clients=noise_clients,
        noise_multiplier=noise_multiplier,
        l1_sensitivity=l1,
        l2_sensitivity=l2,
        dither_failure=0.0 if conditional else failure,
        rotated=True,
        overflow_probability=overflow,
        conditional=conditional,
    )


def on_finer_grid(plan: EncodingPlan, step: int, noise_gain: float) -> EncodingPlan:
    """Return a noised plan whose rounded vectors are multiples of ``step``, in words of 32 bits that must be enough.

    ``noise_gain``: for sums of independent Skellam vectors with coefficients of at most 1.
    """
    finer = dataclasses.replace(plan, bits=32, step=step, noise_gain=noise_gain)
    proxy = step**2 * ((plan.scale * plan.vector_bound) ** 2 / plan.padded + plan.clients / 4)
    overflow = overflow_bound(32, proxy, plan.clients * finer.round_variance())
    if overflow > MAX_OVERFLOW:
        raise ConfigError(
            "no word of 32 bits holds a sum with banded noise; set privacy.mechanism=independent or lower the noise"
        )
    return dataclasses.replace(finer, overflow_probability=overflow)


def _word(proxy: float, variance: float, factor: float = 1.0) -> tuple[int, float]:
    for bits in (16, 32):
        overflow = min(1.0, factor * overflow_bound(bits, proxy, variance))
        if overflow <= MAX_OVERFLOW:
            return bits, overflow
    raise ConfigError(
        "no word of 16 or 32 bits holds the sum; lower the noise multiplier, the expected"
        " batch or the number of clients, or allow more inflation"
    )


def _check_counts(dimension: int, clients: int) -> None:
    if not 1 <= dimension <= 1 << 30:
        raise ConfigError(f"the dimension must lie in 1 .. 2**30, not {dimension}")
    if clients < MIN_CLIENTS:
        raise ConfigError(f"a secure sum takes at least {MIN_CLIENTS} clients, not {clients}")


def plan_plain(dimension: int, bound: float, clients: int) -> EncodingPlan:
    """Plan the encoding of a run without noise: 32 bits, no rotation, nearest integers.

    The scale is the largest at which no sum of coordinates up to ``bound``, real units, can wrap.

    Guarantees
    ----------
    The decoded sum is within ``rounding_bound`` of the true one in every coordinate. There is no differential privacy:
    the sensitivities are reported as 0 because none is claimed.
    """
    _positive(bound=bound)
    _check_counts(dimension, clients)
    reach = (2.0**31 - 2) / clients - 1
    return EncodingPlan(
        dimension=dimension,
        padded=dimension,
        bits=32,
        scale=reach / (bound * (1 + NORM_SLACK)),
        clipping_norm=bound,
        vector_bound=bound,
        clients=clients,
        noise_clients=clients,
        noise_multiplier=0.0,
        l1_sensitivity=0.0,
        l2_sensitivity=0.0,
        dither_failure=0.0,
        rotated=False,
        overflow_probability=0.0,
    )
