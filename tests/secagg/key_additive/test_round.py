"""Key-additive rounds: exact sums, what the server must not get open, attacks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from carefl_secure.errors import CohortError, ConfigError, ProtocolError
from carefl_secure.noise import DeterministicKeySource, KeyStream, add_masks
from carefl_secure.secagg import AdditiveClient, AdditiveParameters, RoundParameters
from carefl_secure.secagg.key_additive.cipher import CipherSum, Ciphertext, encrypt, open_sum
from carefl_secure.secagg.key_additive.messages import KEY_BYTES, AdditiveUpload
from carefl_secure.secagg.key_additive.rehearsal import AdditiveRehearsal
from carefl_secure.secagg.key_additive.ring import (
    CLIENT_NOISE,
    LIMB_BITS,
    LIMBS,
    PLAIN_BITS,
    RING_DEGREE,
    SCALE_BITS,
    SMALL_BOUND,
    carry,
    draw_small,
    public_blocks,
    times,
)
from carefl_secure.secagg.pairwise import transcript
from carefl_secure.secagg.primitives.crypto import sign
from carefl_secure.secagg.primitives.packing import field_limit

Make = Callable[..., RoundParameters]
Integers = npt.NDArray[np.int64]
MODULUS = 1 << LIMBS * LIMB_BITS
BEACON = b"z" * 32


@pytest.fixture
def agree(parameters: Make) -> Callable[..., AdditiveParameters]:
    def make(clients: int = 4, dimension: int = 40, **changes: Any) -> AdditiveParameters:
        base = vars(parameters(clients, dimension=dimension))
        bound = field_limit(changes.get("field_bits", 20)) // clients
        return AdditiveParameters(**{**base, "value_bound": min(bound, 2**15 - 1), **changes})

    return make


Agree = Callable[..., AdditiveParameters]


@pytest.fixture
def play(agree: Agree, identities: list[Any]) -> Callable[..., AdditiveRehearsal]:
    def make(
        clients: int = 4, dimension: int = 40, seed: bytes = b"s", **changes: Any
    ) -> AdditiveRehearsal:
        return AdditiveRehearsal(
            agree(clients, dimension, **changes),
            identities[:clients],
            lambda index: DeterministicKeySource(seed + bytes([index])),
        )

    return make


Play = Callable[..., AdditiveRehearsal]


def vectors(played: AdditiveRehearsal, seed: int = 0) -> dict[int, npt.NDArray[Any]]:
    random, agreed = np.random.default_rng(seed), played.parameters
    assert isinstance(agreed, AdditiveParameters)
    made = {}
    for index in played.clients:
        drawn = random.integers(-agreed.value_bound, agreed.value_bound + 1, agreed.dimension)
        drawn[0] = agreed.value_bound
        made[index] = drawn.astype(agreed.dtype)
    return made


def total(parts: dict[int, npt.NDArray[Any]], members: set[int]) -> npt.NDArray[Any]:
    return np.sum([parts[i] for i in members], axis=0).astype(parts[0].dtype)


def secret(seed: int) -> Integers:
    return draw_small(KeyStream(bytes([seed]) * 32))[0]


def whole(limbs: Integers, place: int) -> int:
    """One coefficient of an element as a number modulo q."""
    return sum(int(limbs[limb, place]) << LIMB_BITS * limb for limb in range(LIMBS)) % MODULUS


# --- the ring ---


@pytest.mark.parametrize("factor", [1, -1, 60, 1000])
def test_products_are_those_of_whole_numbers(factor: int) -> None:
    """Schoolbook multiplication in Python integers, at some coefficients, up to 1000 clients."""
    public = public_blocks(b"c" * 32, BEACON, [3])
    small = secret(1) * factor
    small[:5] = SMALL_BOUND * factor
    product = times(public, small)
    carry(product)
    numbers = [whole(public[0].astype(np.int64), k) for k in range(RING_DEGREE)]
    for k in (0, 1, 2047, 2048, 4095):
        expected = sum(
            (numbers[(k - i) % RING_DEGREE] if k >= i else -numbers[(k - i) % RING_DEGREE])
            * int(small[i])
            for i in range(RING_DEGREE)
        )
        assert whole(product[0], k) == expected % MODULUS


def test_products_of_the_largest_numbers() -> None:
    """Every limb and every coefficient as large as it may be: the rounding has room to spare."""
    lowest = np.full((1, LIMBS, RING_DEGREE), -(1 << LIMB_BITS - 1), np.int32)
    for magnitude in (SMALL_BOUND, SMALL_BOUND * 1000):
        small = np.full(RING_DEGREE, magnitude, np.int64)
        product = times(lowest, small)
        # sum over i <= k minus sum over i > k of equal terms
        expected = (2 * np.arange(1, RING_DEGREE + 1) - RING_DEGREE) * -(1 << LIMB_BITS - 1)
        assert np.array_equal(product[0], np.tile(expected * magnitude, (LIMBS, 1)))


def test_small_elements_have_the_law_that_is_claimed() -> None:
    drawn = draw_small(KeyStream(b"k" * 32), 64).reshape(-1)
    assert np.abs(drawn).max() <= SMALL_BOUND
    seen = np.bincount(drawn + SMALL_BOUND, minlength=2 * SMALL_BOUND + 1)
    law = stats.binom.pmf(np.arange(2 * SMALL_BOUND + 1), 2 * SMALL_BOUND, 0.5)
    keep = law * drawn.size > 20
    expected = law[keep] / law[keep].sum() * seen[keep].sum()
    assert stats.chisquare(seen[keep], expected).pvalue > 1e-6


def test_what_the_sum_of_two_secrets_leaves_open() -> None:
    """Given the sum over h = 2 honest clients, one secret keeps the variance of the table's 3.2."""
    drawn = draw_small(KeyStream(b"h" * 32), 128).reshape(2, -1).astype(np.float64)
    left = drawn[0] - drawn.sum(axis=0) / 2
    assert left.var() == pytest.approx(21 / 2, rel=0.02)
    assert left.var() > 3.19**2
    for value in (-4, 0, 6):
        assert left[drawn.sum(axis=0) == value].var() == pytest.approx(21 / 2, rel=0.08)


def test_the_public_element_is_uniform_and_no_partys_choice() -> None:
    """It moves with every input, and no limb or bit of it leans."""
    base = public_blocks(b"c" * 32, BEACON, [0, 1])
    others = [
        public_blocks(b"d" * 32, BEACON, [0]),
        public_blocks(b"c" * 32, b"y" * 32, [0]),
        base[1:],
    ]
    for other in others:
        assert (other[0] == base[0]).mean() < 1e-3
    bits = (base.reshape(-1)[:, None] >> np.arange(LIMB_BITS)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(base.size)
    assert base.min() < -(1 << 25) and base.max() > 1 << 25 and np.abs(base).max() <= 1 << 26


def test_the_room_for_noise() -> None:
    """Of 27 bits more than ten are left for 1000 clients, counted by hard bounds."""
    assert (1 << SCALE_BITS - 1) / (CLIENT_NOISE * 1000) > 2**11
    assert LIMBS * LIMB_BITS <= 109  # the standard's table at N = 4096, 128 bits
    assert PLAIN_BITS == 80


@pytest.mark.parametrize("field_bits", [20, 30])
def test_a_thousand_clients(agree: Agree, field_bits: int) -> None:
    """Ten ciphertexts a hundred times each, at the largest values that a thousand may send."""
    bound = field_limit(field_bits) // 1000
    agreed = agree(4, 5000, field_bits=field_bits, value_bound=bound)
    random, opened, keys = np.random.default_rng(1), CipherSum(agreed.blocks), np.zeros(1)
    expected: Integers = np.zeros(5000, np.int64)
    for client in range(10):
        integers = random.choice([-bound, bound], 5000)
        if client < 10:
            integers[:9] = bound
        sealed = encrypt(
            integers, secret(client), KeyStream(bytes([client + 50]) * 32), agreed, BEACON
        )
        for _ in range(100):
            opened.add(Ciphertext.decode(memoryview(sealed.encode())))
        keys = keys + 100 * secret(client)
        expected += 100 * integers
    found = open_sum(opened, keys.astype(np.int64), 1000, agreed, BEACON)
    assert np.array_equal(found, expected) and expected[0] == 1000 * bound


def test_a_ciphertext_alone_looks_uniform(agree: Agree) -> None:
    """Of the zero vector, and its planes: no byte of any place leans."""
    agreed = agree(4, 60_000)
    zeros = np.zeros(60_000, np.int64)
    sealed = encrypt(zeros, secret(1), KeyStream(b"n" * 32), agreed, BEACON)
    for plane in (sealed.high, sealed.middle, sealed.low):
        for column in plane.view(np.uint8).reshape(plane.size, -1).T:
            assert stats.chisquare(np.bincount(column, minlength=256)).pvalue > 1e-6


# --- whole rounds ---


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("field_bits", [20, 30])
@pytest.mark.parametrize("dimension", [1, 17_000])
def test_exact_with_dropouts(play: Play, bits: int, field_bits: int, dimension: int) -> None:
    """One client gone before its upload, one after."""
    played = play(7, dimension, bits=bits, field_bits=field_bits)
    parts = vectors(played)
    before = {i: v.copy() for i, v in parts.items()}
    played.advertise()
    played.share()
    played.mask(parts, gone=[2])
    played.sign(gone=[4])
    played.unmask()
    opened = played.finish()
    assert opened.dtype == played.parameters.dtype
    assert np.array_equal(opened, total(parts, {0, 1, 3, 4, 5, 6}))
    assert all(np.array_equal(before[i], v) for i, v in parts.items())
    with pytest.raises(ProtocolError, match=r"^step order"):
        played.finish()


def test_on_a_sparse_graph(play: Play) -> None:
    played = play(40, 40, neighbours=12, share_threshold=9)
    parts = vectors(played)
    played.advertise()
    played.share()
    played.mask(parts, gone=[7])
    played.sign()
    played.unmask()
    assert np.array_equal(played.finish(), total(parts, set(range(40)) - {7}))


def test_a_client_is_restored(play: Play) -> None:
    played = play()
    parts = vectors(played)
    played.advertise()
    played.share()
    old = played.clients[1]
    new = AdditiveClient.restore(
        old.save(), old._identity, played.parameters, DeterministicKeySource(b"x")
    )
    assert isinstance(new, AdditiveClient)
    played.clients[1] = new
    played.mask(parts)
    played.sign()
    played.unmask()
    assert np.array_equal(played.finish(), total(parts, set(range(4))))


def test_too_few_are_left(play: Play) -> None:
    played = play(6)
    played.advertise()
    played.share()
    played.mask(vectors(played), gone=[1, 2])
    with pytest.raises(CohortError, match=r"^cohort floor: 4 clients after uploading"):
        played.sign()


def test_every_round_has_its_own_key(play: Play) -> None:
    """A client's key is drawn for one upload: two rounds, two keys."""
    made = []
    for number in (7, 8):
        played = play(round=number, seed=b"%d" % number)
        played.advertise()
        played.share()
        played.mask(vectors(played))
        made.append(AdditiveUpload.parse(played.uploads[0], 0, agreement(played)).content)
    assert made[0][:KEY_BYTES] != made[1][:KEY_BYTES]


def agreement(played: AdditiveRehearsal) -> AdditiveParameters:
    assert isinstance(played.parameters, AdditiveParameters)
    return played.parameters


# --- what the server must not get open ---


def uploaded(play: Play, gone: tuple[int, ...] = (), **changes: Any) -> AdditiveRehearsal:
    played = play(**changes)
    played.advertise()
    played.share()
    played.mask(vectors(played), gone=gone)
    return played


def test_the_masked_key_tells_nothing_of_the_key(play: Play) -> None:
    """Uniform words; and it opens nothing as it stands."""
    played = uploaded(play)
    upload = AdditiveUpload.parse(played.uploads[0], 0, agreement(played))
    words = upload.key()
    for shift in (0, 8, 16, 24):
        counts = np.bincount(words >> np.uint32(shift) & np.uint32(255), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6
    one = CipherSum(1)
    one.add(upload.ciphertext())
    key = words.view(np.int32).astype(np.int64)
    with pytest.raises(ProtocolError, match=r"^noise: the sum of the keys does not open"):
        open_sum(one, key, 4, agreement(played), played.server._beacon)


def test_the_key_sum_opens_no_other_set_of_ciphertexts(play: Play) -> None:
    """A server that has the sum of all keys tries every smaller and every repeated set."""
    played = uploaded(play)
    beacon, agreed = played.server._beacon, agreement(played)
    played.sign()
    played.unmask()
    parsed = {i: AdditiveUpload.parse(m, i, agreed) for i, m in played.uploads.items()}
    played.finish()
    key_sum = played.server._key_sum.view(np.int32).astype(np.int64)
    for members in ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3, 3), (1, 1, 2, 3)):
        tried = CipherSum(1)
        for index in members:
            tried.add(parsed[index].ciphertext())
        with pytest.raises(ProtocolError, match=r"^noise"):
            open_sum(tried, key_sum, 4, agreed, beacon)
    honest = CipherSum(1)
    for upload in parsed.values():
        honest.add(upload.ciphertext())
    open_sum(honest, key_sum, 4, agreed, beacon)  # the test can tell
    with pytest.raises(ProtocolError, match=r"^noise"):  # another round's a
        open_sum(honest, key_sum, 4, agreed, b"y" * 32)


def test_a_server_that_adds_another_set_than_was_signed(play: Play) -> None:
    """The survivors sign 0, 1, 2; the server counts client 3's ciphertext in all the same."""
    played = uploaded(play, gone=(3,))
    parts = vectors(played)
    late = played.clients[3].mask(parts[3], played.server.inbox(3))
    played.sign()
    played.unmask()
    upload = AdditiveUpload.parse(late, 3, agreement(played))
    assert played.server._ciphers is not None
    played.server._ciphers.add(upload.ciphertext())
    with pytest.raises(ProtocolError, match=r"^noise"):
        played.finish()
    with pytest.raises(ProtocolError, match=r"^step order"):
        played.finish()


def test_two_survivor_sets_are_not_signed(play: Play) -> None:
    """With the sums of keys over two sets the server could take their difference."""
    played = uploaded(play)
    shared, survivors = played.server.survivors()
    client = played.clients[0]
    client.sign(shared, survivors)
    with pytest.raises(ProtocolError, match=r"^step order: sign was answered before"):
        client.sign(shared, survivors[:-1])


def forged(played: AdditiveRehearsal, index: int, key: Any, sealed: Ciphertext) -> bytes:
    """Any content under a client's true signature."""
    client, context = played.clients[index], played.parameters.context()
    content = memoryview(key.astype("<u4").tobytes() + sealed.encode())
    body = AdditiveUpload(content, b"").digest()
    fields = transcript.upload(context, client._state.beacon, index, body)
    signature = sign(client._identity, transcript.UPLOAD, *fields)
    return AdditiveUpload(content, signature).encode(index, context)


def test_a_foreign_key(play: Play) -> None:
    """A client that masks one key and encrypts under another spoils the round, no more."""
    played = uploaded(play, gone=(3,))
    inbox = played.server.inbox(3)
    client = played.clients[3]
    held, masks, signs = client._open_shares(inbox)
    key = (secret(9) & 0xFFFFFFFF).astype(np.uint32)
    add_masks(key, masks, signs)
    zeros = np.zeros(40, np.int64)
    agreed, beacon = agreement(played), client._state.beacon
    sealed = encrypt(zeros, secret(10), KeyStream(b"n" * 32), agreed, beacon)
    message = forged(played, 3, key, sealed)
    client._uploaded(held)
    played.server.uploaded(3, message)
    played.present.add(3)
    played.sign()
    played.unmask()
    with pytest.raises(ProtocolError, match=r"^noise"):
        played.finish()


def test_a_key_that_is_not_small(play: Play) -> None:
    played = uploaded(play, gone=(3,))
    client = played.clients[3]
    held, masks, signs = client._open_shares(played.server.inbox(3))
    key = np.full(RING_DEGREE, 1 << 20, np.uint32)
    add_masks(key, masks, signs)
    empty = encrypt(
        np.zeros(40, np.int64), secret(1), KeyStream(b"n" * 32), agreement(played), BEACON
    )
    message = forged(played, 3, key, empty)
    client._uploaded(held)
    played.server.uploaded(3, message)
    played.present.add(3)
    played.sign()
    played.unmask()
    with pytest.raises(ProtocolError, match=r"^key sum: it is no sum of 4 secrets"):
        played.finish()


@pytest.mark.parametrize("field_bits", [20, 30])
def test_a_sum_that_is_too_large(agree: Agree, field_bits: int) -> None:
    """A client that sends more than the bound is seen where the sum shows it."""
    agreed = agree(4, 40, field_bits=field_bits, value_bound=100)
    for value in (401, -401, (1 << field_bits - 1) - 1):
        one = CipherSum(1)
        sealed = encrypt(np.full(40, value), secret(1), KeyStream(b"n" * 32), agreed, BEACON)
        one.add(sealed)
        with pytest.raises(ProtocolError, match=r"^field overflow"):
            open_sum(one, secret(1), 4, agreed, BEACON)


# --- refused messages ---


def test_messages_of_another_round(play: Play) -> None:
    """Same parties and keys, another round number: an old upload is refused, also relabelled."""
    old, new = uploaded(play, round=6), uploaded(play, gone=(3,))
    stale, top = old.uploads[3], new.parameters.context()[:8]
    with pytest.raises(ProtocolError, match=r"^message context"):
        new.server.uploaded(3, stale)
    with pytest.raises(ProtocolError, match=r"^upload signature"):
        new.server.uploaded(3, stale[:8] + top + stale[16:])


def test_damaged_uploads(play: Play) -> None:
    played = uploaded(play, gone=(3,))
    parts = vectors(played)
    good = played.clients[3].mask(parts[3], played.server.inbox(3))

    def refused(check: str, message: bytes) -> None:
        with pytest.raises(ProtocolError, match=f"^{check}"):
            played.server.uploaded(3, message)

    size = len(good)
    for place in (16, 16 + KEY_BYTES - 1, 16 + KEY_BYTES, size // 2, size - 65, size - 1):
        changed = bytearray(good)
        changed[place] ^= 1
        refused("upload signature: client 3", bytes(changed))
    for cut in (good[:-1], good + b"\x00", good[:15], b"", good[:16]):
        refused("message length", cut)
    refused("message kind", good[:5] + b"\x03" + good[6:])
    refused("message sender", played.uploads[0])
    # the key of one client with the ciphertext of another, as signed
    mixed = good[: 16 + KEY_BYTES] + played.uploads[0][16 + KEY_BYTES : -64] + good[-64:]
    refused("upload signature", mixed)
    played.server.uploaded(3, good)
    refused("duplicate message", good)
    played.present.add(3)
    played.sign()
    played.unmask()
    assert np.array_equal(played.finish(), total(parts, set(range(4))))


def test_a_value_out_of_range(play: Play) -> None:
    played = play()
    parts = vectors(played)
    played.advertise()
    played.share()
    inbox = played.server.inbox(0)
    bound = agreement(played).value_bound
    for false in (bound + 1, -bound - 1, -(2**31)):
        wild = parts[0].copy()
        wild[3] = false % (1 << 32)
        with pytest.raises(ProtocolError, match=r"^value bound: an integer is larger"):
            played.clients[0].mask(wild, inbox)
    with pytest.raises(ProtocolError, match=r"^vector shape"):
        played.clients[0].mask(np.zeros(40, np.int64), inbox)
    played.server.uploaded(0, played.clients[0].mask(parts[0], inbox))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"field_bits": 16}, "20 or 30"),
        ({"value_bound": 0}, "value_bound"),
        ({"value_bound": 2**19}, "the sum could overflow"),
    ],
)
def test_what_is_no_agreement(agree: Agree, changes: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        agree(4, 40, **changes)


@pytest.mark.parametrize("change", [{"value_bound": 5}, {"field_bits": 30}, {"round": 8}])
def test_context_depends_on_every_field(agree: Agree, change: dict[str, Any]) -> None:
    made = agree()
    changed = AdditiveParameters(**{**vars(made), **change})
    assert changed.context() != made.context()
    fields = {name: getattr(made, name) for name in RoundParameters.__dataclass_fields__}
    base = RoundParameters(**fields)
    assert base.context() != made.context()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=60), headed=st.booleans(), kind=st.integers(0, 255))
def test_junk_messages(agree: Agree, data: bytes, headed: bool, kind: int) -> None:
    """The parser raises ProtocolError and nothing else."""
    agreed = JUNK.setdefault("agreed", agree(3, 4))
    top = b"CFSA\x01" + bytes([kind]) + b"\x00\x00" + agreed.context()[:8]
    with pytest.raises(ProtocolError, match=r"^message "):
        AdditiveUpload.parse(top + data if headed else data, 0, agreed)


JUNK: dict[str, AdditiveParameters] = {}


def test_ten_thousand_damaged_uploads(play: Play) -> None:
    """Cut, flipped, lengthened, of other kinds: named refusals of the parser, or of a signature."""
    played = uploaded(play, gone=(3,))
    parts = vectors(played)
    good = played.clients[3].mask(parts[3], played.server.inbox(3))
    random = np.random.default_rng(0)
    signatures = 0
    for _ in range(10_000):
        changed = bytearray(good[: 200 if random.random() < 0.97 else len(good)])
        for place in random.integers(0, min(len(changed), 24), random.integers(1, 4)):
            changed[place] ^= 1 << int(random.integers(0, 8))
        if random.random() < 0.3:
            del changed[int(random.integers(0, len(changed))) :]
        if changed == good:
            continue
        with pytest.raises(ProtocolError, match=r"^(message [a-z]+|upload signature)") as refusal:
            played.server.uploaded(3, bytes(changed))
        signatures += str(refusal.value).startswith("upload signature")
    assert signatures  # some reached the signature
    played.server.uploaded(3, good)
