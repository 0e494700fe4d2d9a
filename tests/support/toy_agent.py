"""A site's real agent whose work is a toy: ``python _toy_agent.py PLAN.pickle BUNDLE SOCKET ...``.

Everything but model and records is the product's own, down to its ``main``.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


class Fixed:
    """A task whose records have a unit gradient each."""

    def __init__(self, dimension: int, seed: int, records: int = 10) -> None:
        self.dimension, self.records = dimension, records
        gradients = np.random.default_rng(seed).normal(size=(records, dimension))
        self.gradients = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)

    def clipped_sum(self, adapter: Any, indices: Any, number: int = 1) -> Any:
        return self.gradients[indices].sum(axis=0)


def main() -> None:
    plan = pickle.loads(Path(sys.argv.pop(1)).read_bytes())
    from carefl_secure.deployment.site import agent
    from carefl_secure.runs import plan_from_config

    plan_from_config.plan_with = lambda *_, **__: plan

    def work(config: object, plan: Any, index: int, *_: Any) -> Any:
        return SimpleNamespace(base_hash=bytes(32), task=Fixed(plan.encoding.dimension, index))

    agent.Work = work  # type: ignore[misc, assignment]
    agent.main()


if __name__ == "__main__":
    main()
