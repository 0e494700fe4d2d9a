"""What one lying client of eight does to the default run at epsilon 8, with and without the guard.

    python benchmarks/poisoning.py [--quick] [--json]

The liar follows the protocol and masks whatever vector it likes. Situations: all honest; garbage of
2^20 clipping norms, with a step on every sum (federation.max_rejected_rounds=null) and with the
default; garbage that keeps the sum just below the certain bound, also with
federation.max_agreement=0.25; the negative of the true vector. Bars:

* with the guard the garbage costs at most half of the gain in mAP that honest clients reach;
* without it, it costs at least nine tenths of that gain;
* the guard names the liar, and nobody else.

Ten minutes on two idle cores; ``--quick`` runs half of the rounds and judges the last bar only.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _bench import Bar, Report, arguments, finish, say

from carefl_secure.config import load_config
from carefl_secure.federation.in_process import Clients
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.sum_guard import honest_norm
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.train import train
from carefl_secure.secagg import wrap

LIAR = 3
Lie = Callable[[np.ndarray, RunPlan], np.ndarray]


def of_norm(norm: Callable[[RunPlan], float]) -> Lie:
    """Return a lie of random direction, of a norm in integer units."""
    rng = np.random.default_rng(1)

    def lie(honest: np.ndarray, plan: RunPlan) -> np.ndarray:
        vector = rng.normal(size=honest.size)
        return vector * (norm(plan) / np.linalg.norm(vector))

    return lie


def below(plan: RunPlan) -> float:
    """Return a norm at which the sum stays within its bound beside the other clients' noise."""
    survivors = plan.privacy.clients - 1
    bound = honest_norm(plan, survivors) * plan.encoding.scale
    noise = plan.noise_norm(survivors) * abs(plan.divisor(survivors)) * plan.encoding.scale
    return 0.9 * float(np.sqrt(bound**2 - noise**2))


GUARDS: dict[str, list[str]] = {
    "off": ["federation.max_rejected_rounds=null"],
    "on": [],
    "agreement 0.25": ["federation.max_agreement=0.25"],
}
LIES: dict[str, Lie | None] = {
    "honest": None,
    "garbage": of_norm(lambda plan: 2.0**20 * plan.privacy.clipping_norm * plan.encoding.scale),
    "below the bound": of_norm(below),
    "sign flip": lambda honest, plan: -honest.astype(np.float64),
}


class Liar:
    """The engine in this process with one lying client."""

    def __init__(self, lie: Lie) -> None:
        self.lie = lie

    def start(self, spec: RunSpec) -> Clients:
        """Start the parties, one of which masks something else than it should."""
        parties, plan, lie = Clients(spec), spec.plan, self.lie
        session, bits = parties.session(LIAR), spec.plan.encoding.bits
        honest = session._protected

        def protected(adapter: Any) -> Any:
            signed = honest(adapter).astype(np.int64)
            signed[signed >= 1 << (bits - 1)] -= 1 << bits
            return wrap(np.rint(lie(signed, plan)).astype(np.int64), bits)

        session._protected = protected
        return parties


def play(folder: str, name: str, guard: str, quick: bool) -> dict[str, Any]:
    """Train once and return the row of the table."""
    chosen = [f"run.dir={folder}", "evaluation.every=1000", "evaluation.baselines=false"]
    chosen += GUARDS[guard]
    chosen += ["federation.rounds=10"] if quick else []
    lie = LIES[name]
    config = load_config(None, chosen)
    result = train(config, SilentReporter(), engine=None if lie is None else lambda *_: Liar(lie))
    log = Path(result.folder) / "logs" / "server.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    rejected = sum(event["event"] == "rejected" for event in events)
    excluded = [str(event["client"]) for event in events if event["event"] == "excluded"]
    say(f"{name}, guard {guard}: mAP {result.after['mAP']:.3f}")
    return {
        "clients": name,
        "guard": guard,
        "rounds": config.federation.rounds,
        "rejected": rejected,
        "excluded": ", ".join(excluded) or "nobody",
        "untuned mAP": float(result.before["mAP"]),
        "mAP": float(result.after["mAP"]),
    }


def main() -> int:
    """Run, print, judge."""
    chosen = arguments(__doc__)
    report = Report("One lying client of eight, epsilon 8")
    with tempfile.TemporaryDirectory() as folder:
        for name, guard in (
            ("honest", "on"),
            ("garbage", "off"),
            ("garbage", "on"),
            ("below the bound", "on"),
            ("below the bound", "agreement 0.25"),
            ("sign flip", "on"),
        ):
            report.rows.append(play(folder, name, guard, chosen.quick))
    honest, without, guarded, *_ = report.rows
    gain = honest["mAP"] - honest["untuned mAP"]
    kept = [(row["mAP"] - row["untuned mAP"]) / gain for row in (without, guarded)]
    if not chosen.quick:
        report.bars += [
            Bar("gain kept with the guard", kept[1], 0.5),
            Bar("gain kept without it", kept[0], 0.1, at_least=False),
        ]
    named = [row["excluded"] for row in report.rows]
    right = named == ["nobody", "nobody", str(LIAR), "nobody", str(LIAR), "nobody"]
    report.bars.append(Bar("the liar is named, and nobody else", float(right), 1.0))
    return finish(report, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
