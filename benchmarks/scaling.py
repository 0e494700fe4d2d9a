"""Time and memory of one round as the number of clients grows: the real protocol, no model.

python benchmarks/scaling.py --clients 10 100 1000 --dimension 1000000
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carefl_secure.federation.cohort import Aggregation
from carefl_secure.federation.folder import RunFolder
from carefl_secure.federation.optim import FedAvg
from carefl_secure.federation.planning import plan_run
from carefl_secure.federation.rounds import run_federation


class Dummy:
    """Records whose gradient is one unit vector: no model, all of the protocol."""

    records = 10

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        """Return one entry per record."""
        total = np.zeros(self.dimension)
        total[0] = len(indices)
        return total


def measure(clients: int, dimension: int, how: Aggregation) -> dict[str, float | int | str]:
    began = time.monotonic()
    plan = plan_run(
        unit="record",
        dimension=dimension,
        clients=clients,
        rounds=1,
        public_records=10 * clients,
        sample_rate=0.5,
        clipping_norm=1.0,
        delta=1e-6,
        target_epsilon=8.0,
    )
    planned = time.monotonic() - began
    with tempfile.TemporaryDirectory() as root:
        before = time.process_time()
        result = run_federation(
            plan,
            [Dummy(dimension) for _ in range(clients)],
            np.zeros(dimension, np.float32),
            optimiser=FedAvg(1.0),
            folder=RunFolder.create(Path(root), ""),
            base_hash=bytes(32),
            aggregation=how,
        )
        used = time.process_time() - before
    (row,) = result.rows
    return {
        "aggregation": how,
        "clients": clients,
        "parameters": dimension,
        "plan_seconds": round(planned, 1),
        "round_seconds": round(float(row["seconds"]), 1),
        "cpu_seconds": round(used, 1),
        "cpu_ms_per_client": round(1000 * used / clients, 1),
        "MB_per_client": round(float(row["bytes_per_client"]) / 1e6, 2),
        "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--aggregation", choices=("peer", "committee"), default="committee")
    words = parser.parse_args()
    for clients in words.clients:
        print(json.dumps(measure(clients, words.dimension, words.aggregation)), flush=True)


if __name__ == "__main__":
    main()
