"""Secure sums side by side with Flower's SecAgg+: CPU per client and server, bytes per parameter.

    python benchmarks/secagg.py [--quick] [--json]

Both play whole rounds in one process, interleaved: n = 10, 50, 100 clients, d = 10k, 100k, 1M
parameters, with and without 10 % dropouts before the upload. Ours is the peer protocol with its
encoding, everyone masked with everyone; Flower's own functions do Flower's part (see
``_flower_secagg.py``). A tilde marks server times of Flower worked out from two clients.

Bars, at n = 100 and d = 1M: the server needs at least 100 times less CPU and the client 8 times
less than Flower's; an upload has 2 to 4 bytes per parameter against 8; masks cost at most 1.5
times the fastest cipher stream plus an in-place add. And 1,000 clients on a sparse graph complete,
with no more vector memory in the server than 100 need.

About fifteen minutes on two cores. ``--quick`` plays small rounds and only judges those.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from _bench import Bar, Report, arguments, cpu, finish, say
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from carefl_secure.noise import SystemKeySource, add_masks
from carefl_secure.secagg import (
    CommitteeClient,
    CommitteeMember,
    CommitteeParameters,
    CommitteeServer,
    PairwiseClient,
    PairwiseServer,
    RoundParameters,
    decode,
    default_threshold,
    encode,
    plan_graph,
    plan_plain,
    wrap,
)


@dataclass
class Ours:
    """CPU seconds of the mean client and of the server, bytes sent, the server's memory."""

    client: float
    server: float
    upload: int
    sent: int
    kept: int = 0
    peak: int = 0


def agreement(clients: int, dimension: int, bits: int = 32, **graph: int) -> Any:
    """Return parameters and signing keys of a round."""
    identities = [Ed25519PrivateKey.generate() for _ in range(clients)]
    roster = tuple(i.public_key().public_bytes_raw() for i in identities)
    hashes = {name: bytes(32) for name in ("model_hash", "base_hash", "plan_hash")}
    return identities, RoundParameters(
        task=b"benchmark",
        round=0,
        dimension=dimension,
        bits=bits,
        threshold=default_threshold(clients),
        min_survivors=3,
        roster=roster,
        **hashes,
        **graph,
    )


def play(clients: int, dimension: int, dropped: int, *, bits: int = 32, traced: bool = False, **graph: int) -> Ours:
    """Play a round; every upload goes straight to the server and is forgotten."""
    identities, parameters = agreement(clients, dimension, bits, **graph)
    plan = plan_plain(dimension, 0.1, clients)
    real = np.random.default_rng(0).normal(0, 0.01, dimension).clip(-0.1, 0.1)
    whole = np.arange(dimension, dtype=parameters.dtype)  # what 16-bit rounds sum
    server = PairwiseServer(parameters)
    peers = [PairwiseClient(parameters, i, key, SystemKeySource()) for i, key in enumerate(identities)]
    spent = {"client": 0.0, "server": 0.0}
    sent = kept = peak = 0

    def on(side: str, work: Callable[[], Any], trace: bool = False) -> Any:
        nonlocal kept, peak
        if traced and trace:
            tracemalloc.start()
        result, seconds = cpu(work)
        if traced and trace:
            held, highest = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            kept, peak = kept + held, max(peak, highest)
        spent[side] += seconds
        return result

    def words() -> npt.NDArray[Any]:
        return whole if bits == 16 else wrap(encode(real, plan), 32)

    for i, peer in enumerate(peers):
        message = on("client", peer.advertise)
        sent += len(message)
        on("server", lambda i=i, m=message: server.advertised(i, m))
    listed = on("server", server.advertisements)
    for i, peer in enumerate(peers):
        messages = on("client", lambda p=peer: p.share(listed))
        sent += sum(map(len, messages.values()))
        on("server", lambda i=i, m=messages: server.shared(i, m))
    alive = range(dropped, clients)
    upload = 0
    for i in alive:
        inbox = on("server", lambda i=i: server.inbox(i))
        message = on("client", lambda i=i, box=inbox: peers[i].mask(words(), box))
        upload = len(message)
        on("server", lambda i=i, m=message: server.uploaded(i, m), trace=True)
    shared, survivors = on("server", server.survivors)
    for i in alive:
        message = on("client", lambda i=i: peers[i].sign(shared, survivors))
        sent += len(message)
        on("server", lambda i=i, m=message: server.signed(i, m))
    signatures = on("server", server.signatures)
    for i in alive:
        message = on("client", lambda i=i: peers[i].unmask(signatures))
        sent += len(message)
        on("server", lambda i=i, m=message: server.answered(i, m))
    total = on("server", server.finish)
    if bits == 16:
        exact = np.array_equal(total, whole * parameters.dtype.type(len(alive)))
    else:
        opened = on("server", lambda: decode(total, plan))
        exact = bool(np.abs(opened - len(alive) * real).max() <= len(alive) / plan.scale)
    if not exact:
        raise SystemExit("the opened sum is wrong")
    return Ours(spent["client"] / clients, spent["server"], upload, sent // clients, kept, peak)


def masks(dimension: int, count: int, repeats: int) -> tuple[float, float]:
    """Return seconds per mask, ours and the floor: the fastest cipher stream, then an add.

    The floor runs OpenSSL's counter and Galois modes and ChaCha20 over tiles of zeros, keeps the
    fastest, and adds each tile in place: what no implementation on this machine goes below.
    """
    tile = 256 << 10
    zeros, room = memoryview(bytes(tile)), memoryview(bytearray(tile + 16))
    block = np.frombuffer(room[:tile], np.uint32)
    makers: list[Callable[[bytes], Any]] = [
        lambda key: Cipher(algorithms.AES(key), modes.CTR(bytes(16))),
        lambda key: Cipher(algorithms.AES(key), modes.GCM(bytes(12))),
        lambda key: Cipher(algorithms.ChaCha20(key, bytes(16)), None),
    ]
    accumulator = np.zeros(dimension, np.uint32)
    keys = [bytes([i]) * 32 for i in range(count)]

    def bare(make: Callable[[bytes], Any]) -> None:
        streams = [make(key).encryptor() for key in keys]
        for start in range(0, dimension, tile // 4):
            part = accumulator[start : start + tile // 4]
            for stream in streams:
                stream.update_into(zeros[: part.nbytes], room)
                np.add(part, block[: part.size], out=part)

    ours, floor = float("inf"), float("inf")
    for _ in range(repeats):
        ours = min(ours, cpu(lambda: add_masks(accumulator, keys, [1] * count))[1])
        for make in makers:
            floor = min(floor, cpu(lambda make=make: bare(make))[1])
    return ours / count, floor / count


def committee(clients: int, dimension: int) -> tuple[float, float, float]:
    """Return CPU seconds per client, per member, and bytes per parameter of a committee round."""
    people = [Ed25519PrivateKey.generate() for _ in range(clients)]
    members = [Ed25519PrivateKey.generate() for _ in range(3)]
    publics = [tuple(k.public_key().public_bytes_raw() for k in ks) for ks in (people, members)]
    parameters = CommitteeParameters(
        task=b"benchmark",
        round=0,
        dimension=dimension,
        bits=32,
        min_survivors=3,
        base_hash=bytes(32),
        plan_hash=bytes(32),
        roster=publics[0],
        members=publics[1],
        model_hash=bytes(32),
    )
    server = CommitteeServer(parameters)
    helpers = [CommitteeMember(parameters, index, key, SystemKeySource()) for index, key in enumerate(members)]
    for index, helper in enumerate(helpers):
        server.announced(index, helper.announce())
    announcements = server.announcements()
    vector = np.arange(dimension, dtype=np.uint32)
    client = member = 0.0
    size = 0
    for index, key in enumerate(people):
        sender = CommitteeClient(parameters, index, key, SystemKeySource())
        message, seconds = cpu(lambda one=sender: one.mask(vector, announcements))
        client, size = client + seconds, len(message)
        server.submitted(index, message)
    for index, helper in enumerate(helpers):
        listing = server.listing(index)
        opening, seconds = cpu(lambda one=helper, m=listing: one.open(announcements, m))
        member += seconds
        server.opened(index, opening)
    openings = server.openings()
    for index, helper in enumerate(helpers):
        answer, seconds = cpu(lambda one=helper: one.answer(openings))
        member += seconds
        server.answered(index, answer)
    if not np.array_equal(server.finish(), vector * np.uint32(clients)):
        raise SystemExit("the opened sum is wrong")
    return client / clients, member / 3, size / dimension


def main() -> int:
    """Measure, print, judge."""
    chosen = arguments(__doc__)
    import _flower_secagg as flower

    report = Report("Secure sums: ours against Flower's SecAgg+ (CPU seconds)")
    sizes = (10,) if chosen.quick else (10, 50, 100)
    dimensions = (10_000, 100_000) if chosen.quick else (10_000, 100_000, 1_000_000)
    last: tuple[Ours, Any] | None = None
    for clients in sizes:
        for dimension in dimensions:
            for dropped in (0, clients // 10):
                largest = (clients, dimension) == (sizes[-1], dimensions[-1])
                say(f"n={clients} d={dimension} dropped={dropped}")
                first = play(clients, dimension, dropped)
                theirs = flower.play(clients, dimension, dropped, whole=largest)
                second = play(clients, dimension, dropped)  # after the peer, too
                ours = min(first, second, key=lambda cost: cost.client + cost.server / clients)
                report.rows.append(
                    {
                        "n": clients,
                        "d": dimension,
                        "dropped": dropped,
                        "client": ours.client,
                        "Flower": theirs.client,
                        "times": theirs.client / ours.client,
                        "server": ours.server,
                        "Flower ": ("" if theirs.whole else "~") + f"{theirs.server:.3g}",
                        "times ": theirs.server / ours.server,
                        "B/param": ours.upload / dimension,
                        "Flower  ": theirs.upload / dimension,
                        "overhead B": ours.sent,
                    }
                )
                if largest and not dropped:
                    last = (ours, theirs)
    if last is None:
        raise SystemExit("nothing was measured")
    ours, theirs = last
    where = f"n={sizes[-1]}, d={dimensions[-1]:,}"
    short = play(sizes[-1], dimensions[-1], 0, bits=16)
    dimension = dimensions[-1]
    server_bar, client_bar = (2.0, 2.0) if chosen.quick else (100.0, 8.0)
    slack = 100 / dimension  # header and signature
    report.bars += [
        Bar(f"server CPU, times less ({where})", theirs.server / ours.server, server_bar),
        Bar(f"client CPU, times less ({where})", theirs.client / ours.client, client_bar),
        Bar("bytes per parameter, 32-bit words", ours.upload / dimension, 4 + slack, False),
        Bar("bytes per parameter, 16-bit words", short.upload / dimension, 2 + slack, False),
        Bar("bytes per parameter, Flower", theirs.upload / dimension, 8),
    ]
    own, bare = masks(dimension, 8 if chosen.quick else 64, 5)
    report.notes.append(
        f"one mask of {dimension:,} words: {own * 1e3:.3f} ms; fastest stream + add {bare * 1e3:.3f} ms"
    )
    report.bars.append(Bar("masks, times the stream + add", own / bare, 1.5, False))
    say("committee")
    client, member, size = committee(sizes[-1], dimension)
    report.notes.append(
        f"committee of 3, {where}: client {client * 1e3:.2f} ms and one message of {size:.3f}"
        f" B/param, member {member * 1e3:.0f} ms"
    )
    many, few = (60, 30) if chosen.quick else (1000, 100)
    plan = (
        plan_graph(many, colluders=1, dropouts=6)
        if chosen.quick
        else plan_graph(many, colluders=50, dropouts=100, members=default_threshold(many))
    )
    say(f"sparse: n={many} k={plan.neighbours}")
    graph = {"neighbours": plan.neighbours, "share_threshold": plan.share_threshold}
    sparse = play(many, dimension, many // 10, traced=True, **graph)
    small = play(few, dimension, few // 10, traced=True)
    vector = 4 * dimension
    report.notes.append(
        f"sparse, n={many}, k={plan.neighbours}, t={plan.share_threshold}, 10 % dropped: completed,"
        f" client {sparse.client:.3g} s, server {sparse.server:.3g} s,"
        f" {sparse.sent:,} B beside the vector"
    )
    report.notes.append(
        f"server memory for uploads, in vectors: kept {sparse.kept / vector:.3f} (n={few}:"
        f" {small.kept / vector:.3f}), peak of one call {sparse.peak / vector:.3f}"
        f" (n={few}: {small.peak / vector:.3f})"
    )
    grown = (sparse.kept + sparse.peak - small.kept - small.peak) / vector
    report.bars.append(Bar(f"server memory, vectors more at n={many} than at n={few}", grown, 0.25, False))
    return finish(report, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
