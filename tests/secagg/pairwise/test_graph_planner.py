"""Neighbours and threshold against scipy's tails, simulation, and a server that cuts the ring."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from scipy.stats import hypergeom

from carefl_secure.errors import ConfigError
from carefl_secure.secagg.pairwise.graph_planner import plan_graph, tolerated_colluders


@pytest.mark.parametrize("clients", [100, 300, 1000])
@pytest.mark.parametrize(("corrupt", "gone"), [(0.01, 0.1), (0.05, 0.1), (0.1, 0.1), (0.05, 0.2)])
def test_the_plan_keeps_its_word(clients: int, corrupt: float, gone: float) -> None:
    """Both failure probabilities by an independent hypergeometric tail."""
    colluders, dropouts = int(corrupt * clients), int(gone * clients)
    plan = plan_graph(clients, colluders=colluders, dropouts=dropouts)
    half, members = plan.neighbours // 2, plan.members
    assert half + 2 <= plan.share_threshold <= plan.neighbours < members - 1
    bad = plan.share_threshold - half - 1
    private = math.log2(members) + hypergeom.logsf(bad - 1, members - 1, colluders, half) / math.log(2)
    assert private <= -80
    opened = math.log2(clients) + hypergeom.logcdf(
        plan.share_threshold - 1, clients - 1, clients - 1 - dropouts, plan.neighbours
    ) / math.log(2)
    assert opened <= -20
    assert tolerated_colluders(members, plan.neighbours, plan.share_threshold) >= colluders


@pytest.mark.parametrize(
    ("clients", "colluders", "dropouts", "expected"),
    [(100, 5, 10, (34, 24)), (300, 15, 30, (78, 56)), (1000, 10, 100, (74, 49)), (1000, 100, 100, (188, 145))],
)
def test_known_plans(clients: int, colluders: int, dropouts: int, expected: tuple[int, int]) -> None:
    plan = plan_graph(clients, colluders=colluders, dropouts=dropouts)
    assert (plan.neighbours, plan.share_threshold) == expected


def test_fewer_survivors_need_more_neighbours() -> None:
    high = plan_graph(1000, colluders=100, dropouts=100)
    low = plan_graph(1000, colluders=100, dropouts=100, members=667)
    assert low.neighbours > high.neighbours


def test_tolerated_is_the_largest() -> None:
    most = tolerated_colluders(900, 188, 145)
    half = 94

    def risk(colluders: int) -> float:
        tail = hypergeom.logsf(145 - half - 2, 899, colluders, half)
        return float(math.log2(900) + tail / math.log(2))

    assert risk(most) <= -80 < risk(most + 1)
    assert tolerated_colluders(27, 12, 9) == 1
    assert tolerated_colluders(27, 12, 8) == 0


@pytest.mark.parametrize(
    "numbers",
    [
        {"colluders": 20, "dropouts": 20},
        {"colluders": -1, "dropouts": 1},
        {"colluders": 50, "dropouts": 60},
        {"colluders": 1, "dropouts": 100},
        {"colluders": 1, "dropouts": 1, "members": 101},
    ],
)
def test_what_no_sparse_graph_bears(numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"(use the complete graph|cannot stand)"):
        plan_graph(100, **numbers)


def groups(order: list[int], survivors: set[int], honest: set[int], half: int, needed: int) -> int:
    """How many separate sums a server opens that has dropped all but ``survivors``.

    A survivor is opened if ``needed`` holders answer: itself, honest survivors near it and all
    colluders near it. Honest survivors stay together along masks between those that stand.
    """
    size = len(order)
    near = {m: {order[(p + s) % size] for s in range(-half, half + 1) if s} for p, m in enumerate(order)}
    answers = survivors | (set(order) - honest)
    opened = {m for m in survivors & honest if 1 + len(near[m] & answers) >= needed}
    left, found = survivors & honest, 0
    while left:
        group, edge = set(), {left.pop()}
        while edge:
            group |= edge
            edge = {o for m in edge for o in near[m] & (survivors & honest)} - group
        left -= group
        found += group <= opened
    return found


@pytest.mark.parametrize(("threshold", "splits"), [(18, True), (None, False)])
def test_a_server_that_cuts_the_ring(threshold: int | None, splits: bool) -> None:
    """The server drops two runs of clients. A threshold for chance dropouts yields, ours holds."""
    plan = plan_graph(100, colluders=5, dropouts=10)
    shuffle = random.Random(1)
    half, needed = plan.neighbours // 2, threshold or plan.share_threshold
    cut = False
    for _ in range(200):
        order = list(range(100))
        shuffle.shuffle(order)
        honest = set(shuffle.sample(range(100), 95))
        start = shuffle.randrange(20, 60)
        gone = {order[(start + s) % 100] for s in range(half)} | {order[s] for s in range(half)}
        cut |= groups(order, set(order) - (gone & honest), honest, half, needed) > 1
    assert cut == splits


def worst(order: list[int], colluders: set[int], half: int) -> int:
    """The most colluders among the ``half`` members after any honest one."""
    size = len(order)
    return max(
        sum(order[(place + step) % size] in colluders for step in range(1, half + 1))
        for place, member in enumerate(order)
        if member not in colluders
    )


@pytest.mark.parametrize(("size", "half", "count", "threshold"), [(9, 2, 2, 5), (9, 3, 3, 6)])
def test_every_placement_and_every_drop_of_a_small_ring(size: int, half: int, count: int, threshold: int) -> None:
    """Brute force: where the supposition holds, no choice of survivors opens two sums."""
    order, held = list(range(size)), 0
    for placed in itertools.combinations(range(size), count):
        colluders = set(placed)
        honest = set(order) - colluders
        holds = worst(order, colluders, half) <= threshold - half - 2
        held += holds
        for mask in range(1 << size):
            survivors = {member for member in order if mask >> member & 1} | colluders
            opened = groups(order, survivors, honest, half, threshold)
            assert opened <= 1 or not holds
    assert held > 0


def test_one_colluder_more_than_supposed_opens_two_sums() -> None:
    """The condition is not idle: two honest runs of four between cuts of one gone and two bad."""
    order, half = list(range(14)), 3
    gone, colluders = {4, 11}, {5, 6, 12, 13}
    honest = set(order) - colluders
    found = [groups(order, set(order) - gone, honest, half, needed) for needed in (6, 7)]
    assert found == [2, 0]
    assert [worst(order, colluders, half) <= needed - half - 2 for needed in (6, 7)] == [False, True]


@pytest.mark.parametrize(
    ("size", "half", "count", "bad"), [(10, 2, 3, 2), (12, 3, 4, 3), (11, 4, 3, 2), (13, 3, 2, 1)]
)
def test_the_union_bound_against_all_placements(size: int, half: int, count: int, bad: int) -> None:
    """The exact failure probability of small rings lies below the bound, and near it."""
    placements = list(itertools.combinations(range(size), count))
    failing = sum(worst(list(range(size)), set(placed), half) >= bad for placed in placements)
    exact = failing / len(placements)
    bound = size * float(hypergeom.sf(bad - 1, size - 1, count, half))
    assert 0 < exact <= bound
    assert min(1.0, bound) < 8 * exact


@pytest.mark.parametrize("colluders", [0, 5, 30])
def test_more_members_than_needed_only_help(colluders: int) -> None:
    plan = plan_graph(300, colluders=colluders, dropouts=60)
    half = plan.neighbours // 2
    risks = [
        math.log(members) + hypergeom.logsf(plan.share_threshold - half - 2, members - 1, colluders, half)
        for members in range(plan.members, 301)
    ]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(risks))
