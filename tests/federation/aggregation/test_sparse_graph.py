"""Pairwise masking of more than 200 clients: a sparse graph that follows from the plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.federation.plan.run_plan import SPARSE_ABOVE, RunPlan

MakeBench = Callable[..., Any]
CLIENTS = 300


def test_only_large_cohorts_are_sparse(plan_toy: Callable[..., Any]) -> None:
    assert plan_toy(SPARSE_ABOVE, unit="none").graph is None
    graph = plan_toy(SPARSE_ABOVE + 1, unit="none").graph
    assert graph is not None
    assert (graph.privacy_bits, graph.recovery_bits) == (80, 20)
    assert graph.share_threshold <= graph.neighbours < 60


def test_colluders_that_no_sparse_graph_withstands_are_refused(plan_toy: Callable[..., Any]) -> None:
    more = plan_toy(CLIENTS, unit="none", max_colluders=60).graph
    assert more is not None and more.neighbours > 150
    with pytest.raises(ConfigError, match="no sparse graph"):
        plan_toy(CLIENTS, unit="none", max_colluders=95)
    assert plan_toy(CLIENTS, unit="none", max_colluders=95, masks_in_pairs=False).graph is None


def test_the_plan_states_the_graph_and_takes_no_other(plan_toy: Callable[..., Any]) -> None:
    plan = plan_toy(CLIENTS, unit="none")
    stated = plan.to_json()
    assert stated["masking_graph"] == vars(plan.graph)
    assert RunPlan.from_json(stated) == plan
    assert f"with {plan.graph.neighbours} others" in plan.graph.text and "2^-80" in plan.graph.text
    weaker = {**stated["masking_graph"], "share_threshold": plan.graph.share_threshold - 1}
    for wrong in (weaker, None, {}, {**stated["masking_graph"], "neighbours": 4}):
        with pytest.raises(ConfigError, match="graph that does not follow"):
            RunPlan.from_json({**stated, "masking_graph": wrong})
    small = plan_toy(SPARSE_ABOVE, unit="none").to_json()
    assert "masking_graph" not in small
    with pytest.raises(ConfigError, match="graph that does not follow"):
        RunPlan.from_json({**small, "masking_graph": stated["masking_graph"]})


@pytest.mark.slow
def test_three_hundred_clients_sum_with_a_few_masks_each(make_bench: MakeBench) -> None:
    bench = make_bench(CLIENTS, 16, 2, unit="none", sample_rate=1.0, public_records=2 * CLIENTS)
    graph = bench.plan.graph
    assert graph is not None
    parameters = bench.clients.cohort.round_parameters(bench.plan, 1)
    assert (parameters.neighbours, parameters.share_threshold) == (graph.neighbours, graph.share_threshold)
    assert parameters.max_colluders >= bench.plan.privacy.max_colluders
    moved = bench.start(rounds=1)
    whole = np.concatenate([task.gradients for task in bench.tasks])
    np.testing.assert_allclose(moved, -whole.mean(axis=0), atol=1e-4)  # of the integer grid
    shares = [
        len(message.content["fields"]["shares"])
        for _, message in bench.seen
        if message.metadata.message_type == "query.share" and message.metadata.reply_to_message_id
    ]
    assert shares == [graph.neighbours] * CLIENTS
    assert bench.rows[0]["survivors"] == CLIENTS
