"""What privacy costs, and that a private federated step is one step of DP-SGD on the pooled data.

    python benchmarks/utility.py [--quick] [--json]

Three seeds of the default run at epsilon 8, of the same run without privacy, and of a centralised
DP-SGD run on the pooled records with the same sampling rate, clipping and total noise. Bars:

* the gain over the untuned model at epsilon 8 is at least 80 % of the gain without privacy;
* federated and centralised end at the same mAP within seed noise (95 % interval of the difference).

About ten minutes on two cores; ``--quick`` runs two rounds of one seed and judges nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np

from carefl_secure.config import Config, load_config
from carefl_secure.federation.server.optimizers import FedAdam
from carefl_secure.model.embedded import QUESTIONS
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.client_task import model_tasks
from carefl_secure.runs.evaluation.evaluator import Evaluator
from carefl_secure.runs.staged_corpora import load_corpora
from carefl_secure.runs.train import train

STUDENT = 2.776  # two-sided 95 % of Student's t with 4 degrees of freedom: two means of three


def settings(folder: str, seed: int, rounds: int | None, *more: str) -> Config:
    """Return the default configuration with another seed, kept out of the user's runs."""
    short = [] if rounds is None else [f"federation.rounds={rounds}"]
    chosen = [f"run.dir={folder}", f"run.seed={seed}", "evaluation.every=1000"]
    return load_config(None, [*chosen, "evaluation.baselines=false", *short, *more])


def centralised(config: Config, noise_multiplier: float, seed: int) -> float:
    """Train on the pooled records by DP-SGD with Gaussian noise and return the final mAP.

    In each round the records of one client in eight stay out, as in the federated run.
    """
    rng = np.random.default_rng([seed, 77])
    corpora = load_corpora(config, SilentReporter())
    adapter = Adapter(
        load_base(quantization=config.model.quantization),
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        targets=config.adapter.targets,
        train=config.adapter.train,
        seed=config.adapter.seed,
    )
    scorer = LabelScorer(adapter, corpora.private.space, QUESTIONS["emotic"])
    owner = np.empty(len(corpora.private.records), np.int64)
    for client, share in enumerate(corpora.shares):
        owner[share] = client
    corpora.shares[:] = [np.arange(len(owner))]  # one pool
    norm = config.privacy.clipping_norm
    (pool,) = model_tasks(
        scorer,
        corpora,
        Clipping(norm, config.privacy.normalise, config.privacy.clipping, micro_batch=128),
        SilentReporter(),
    )
    evaluate = Evaluator(scorer, corpora, config.performance.evaluation_batch, SilentReporter())
    optimiser = FedAdam(config.federation.server_lr, config.federation.betas)
    clients, rate = config.federation.clients, config.sample_rate
    gone = round(config.simulation.dropout * clients)
    point = adapter.vector()
    for number in range(1, config.federation.rounds + 1):
        out = rng.choice(clients, gone, replace=False)
        drawn = np.flatnonzero((rng.random(len(owner)) < rate) & ~np.isin(owner, out))
        total = pool.clipped_sum(point, drawn, number)
        total += rng.normal(0, noise_multiplier * norm, total.shape)
        expected = rate * len(owner) * (clients - gone) / clients
        point = optimiser.step(point, total / expected)
    return evaluate(point)["mAP"]


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rounds, seeds = (2, 1) if arguments.quick else (None, 3)
    found: dict[str, list[float]] = {"federated": [], "centralised": [], "without privacy": []}
    untuned = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            config = settings(folder, seed, rounds)
            private = train(config, SilentReporter())
            plan = json.loads((Path(private.folder) / "plan.json").read_text())
            privacy = plan["privacy"]
            survivors = config.federation.clients - round(config.simulation.dropout * config.federation.clients)
            # All survivors add their share; only the honest floor of them is counted on.
            counted = privacy["min_survivors"] - privacy["max_colluders"]
            whole = privacy["noise_multiplier"] * (survivors / counted) ** 0.5
            found["federated"].append(private.after["mAP"])
            # at the rate that the federated run's pilot chose
            found["centralised"].append(centralised(load_config(private.folder / "config.yaml"), whole, seed))
            free = train(settings(folder, seed, rounds, "privacy.unit=none"), SilentReporter())
            found["without privacy"].append(free.after["mAP"])
            untuned = float(private.before["mAP"])
    means = {name: float(np.mean(values)) for name, values in found.items()}
    share = (means["federated"] - untuned) / (means["without privacy"] - untuned)
    apart = abs(means["federated"] - means["centralised"])
    spread = [np.var(found[name], ddof=1) / seeds for name in ("federated", "centralised")]
    noise = STUDENT * float(np.sqrt(sum(spread))) if seeds > 1 else float("nan")
    bars = {} if arguments.quick else {"gain": share >= 0.8, "equal": apart <= noise}
    if arguments.json:
        figures = {"untuned": untuned, **found, "gain_kept": share, "apart": apart}
        print(json.dumps({**figures, "seed_noise": noise, "bars": bars}, default=bool))
    else:
        print(f"{'untuned':18s} mAP {untuned:.3f}")
        for name, values in found.items():
            print(f"{name:18s} mAP {means[name]:.3f}  ({', '.join(f'{v:.4f}' for v in values)})")
        print(f"gain kept at epsilon 8: {share:.1%} of the gain without privacy (bar: 80 %)")
        print(f"federated and centralised are {apart:.4f} apart; seed noise is {noise:.4f}")
        print(f"{sum(bars.values())} of {len(bars)} bars hold")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
