"""Room for encrypted sums: nothing overflows, nobody refuses by chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.noise import DeterministicKeySource, KeyStream, SkellamSampler
from carefl_secure.secagg import encode
from carefl_secure.secagg.encrypted.packing import choose_fields, excess_probability, field_limit, narrow, widen

PlanToy = Callable[..., Any]


@pytest.mark.parametrize("clients", [3, 17, 300])
@pytest.mark.parametrize("unit", ["record", "none"])
def test_no_sum_of_allowed_integers_overflows(plan_toy: PlanToy, clients: int, unit: str) -> None:
    plan = plan_toy(clients, 2000, unit=unit, public_records=600, max_colluders=0, delta=1e-4)
    encoding = plan.encoding
    room = choose_fields(encoding)
    assert clients * room.value_bound <= field_limit(room.field_bits)
    assert room.value_bound <= 1 << encoding.bits - 1
    assert excess_probability(encoding, room.value_bound) <= 2.0**-100


def test_short_words_take_narrow_fields_and_long_ones_wide_fields(plan_toy: PlanToy) -> None:
    short = plan_toy(8, 2000, public_records=600, delta=1e-4).encoding
    long = plan_toy(8, 60, public_records=60_000, delta=1e-6).encoding
    assert (short.bits, choose_fields(short).field_bits) == (16, 20)
    assert (long.bits, choose_fields(long).field_bits) == (32, 30)


def test_every_short_word_fits_and_comes_back(plan_toy: PlanToy) -> None:
    """No refusal can happen at all where words have 16 bits, the lowest one included."""
    for clients in (3, 16):
        plan = plan_toy(clients, 2000, public_records=600, max_colluders=0, delta=1e-4)
        assert plan.encoding.bits == 16
        assert choose_fields(plan.encoding).value_bound == 2**15
    words = np.arange(2**16, dtype=np.uint16)
    wide = widen(words)
    signed = wide.view(np.int32)
    np.testing.assert_array_equal(signed, words.view(np.int16))
    assert (int(signed.min()), int(signed.max())) == (-(2**15), 2**15 - 1)
    total = wide + wide[::-1] + wide
    np.testing.assert_array_equal(narrow(total, 16), words + words[::-1] + words)
    np.testing.assert_array_equal(narrow(total, 32), total)


def test_the_bound_on_the_chance_of_a_refusal_holds(plan_toy: PlanToy) -> None:
    """Play the worst client, which holds the longest vector allowed, and count."""
    plan = plan_toy(6, 60, public_records=180)
    encoding = dataclasses.replace(plan.encoding)
    vector = np.zeros(60)
    vector[3] = encoding.vector_bound
    keys = DeterministicKeySource(b"refusals")
    sampler = SkellamSampler(plan.share_variance)
    largest = []
    for number in range(400):
        dither, noise = KeyStream(keys.key("dither")), KeyStream(keys.key("noise"))
        rotation = number.to_bytes(32, "big")
        integers = encode(vector, encoding, rotation, dither)
        largest.append(np.abs(integers + sampler.sample(noise, integers.size)).max())
    values = np.array(largest)
    for bound in np.quantile(values, [0.1, 0.5, 0.9, 0.99]):
        assert np.mean(values > bound) <= excess_probability(encoding, int(bound))
    chances = [excess_probability(encoding, bound) for bound in (10, 10**4, 10**5, 10**6)]
    assert chances == sorted(chances, reverse=True) and chances[0] == 1.0 and chances[-1] < 1e-30


def test_without_noise_the_longest_vector_fits(plan_toy: PlanToy) -> None:
    encoding = plan_toy(7, 60, unit="none", max_colluders=0).encoding
    room = choose_fields(encoding)
    integers = encode(np.full(60, encoding.vector_bound), encoding)
    assert room.value_bound - 2000 < np.abs(integers).max() <= room.value_bound
    assert excess_probability(encoding, int(integers.max()) - 10) == 1.0


def test_what_fits_no_field_is_refused(plan_toy: PlanToy) -> None:
    plan = plan_toy(7, 60, max_colluders=0, public_records=600_000, delta=1e-7)
    with pytest.raises(ConfigError, match="cannot be encrypted"):
        choose_fields(plan.encoding)


def test_a_client_above_the_bound_is_cut_to_it_and_does_not_refuse(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from carefl_secure.federation.client.session import ClientSession
    from carefl_secure.federation.server import strategy

    bench = make_bench(aggregation="encrypted")
    bound = choose_fields(bench.plan.encoding).value_bound
    kind = np.uint32
    assert bench.plan.encoding.bits == 32

    def protected(session: Any, adapter: Any) -> Any:
        words = np.zeros(bench.plan.encoding.padded, kind)
        words[0] = bound + 5 * (session.index == 3)
        return words

    sums: list[Any] = []
    opening = strategy.decode

    def decode(total: Any, *rest: Any) -> Any:
        sums.append(total.copy())
        return opening(total, *rest)

    monkeypatch.setattr(ClientSession, "_protected", protected)
    monkeypatch.setattr(strategy, "decode", decode)
    bench.start()
    assert sums[0][0] == 6 * bound and not sums[0][1:].any()
