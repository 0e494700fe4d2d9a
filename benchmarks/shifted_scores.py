"""Compares tuned models with logistic regressions on the same frozen features, on corpora new to the base.

    python benchmarks/shifted_scores.py emoji=/tmp/emoji avatars=/tmp/avatars london=../shared/data/london-faces

For every corpus, without privacy and at epsilon 8, and for every seed (of data split and run), one default run is
trained and scored on its test split. Next to it stand the regressions of ``feature_baselines``, fitted on the same
private records: to convergence without privacy, and by central DP-SGD at the run's epsilon, rounds and sampling rate.
At epsilon 8 one draw of the noise moves either mAP by about 0.01, so a seed's figure is the mean of ``--draws`` runs.
The corpora must be open, as nothing protects their records here. ``shifted_corpora.py`` draws the first two. A bar
holds if the mean of the tuned models is not below that of the regression.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from typing import Any

import numpy as np
from scipy.stats import t

from carefl_secure.config import Config, load_config
from carefl_secure.progress import SILENT
from carefl_secure.runs.build import label_scorer
from carefl_secure.runs.evaluation.evaluator import feature_baselines
from carefl_secure.runs.staged_corpora import load_corpora
from carefl_secure.runs.train import train


def interval(values: list[float]) -> str:
    """Return the mean of some seeds with its t interval at 95 %."""
    mean, half = float(np.mean(values)), math.inf
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def measure(source: str, seed: int, private: bool, folder: str) -> dict[str, float]:
    """Train one run with default settings; return its test mAP and that of the regression."""
    settings: dict[str, Any] = {"data": {"source": source, "seed": seed}, "run": {"seed": seed, "dir": folder}}
    settings["privacy"] = {"epsilon": 8.0} if private else {"unit": "none"}
    settings["evaluation"] = {"baselines": False, "every": 1000}
    config = Config.model_validate(settings)
    summary = train(config, SILENT)
    config = load_config(summary.folder / "config.yaml")  # with the sampling rate of the run
    corpora = load_corpora(config, SILENT)
    adapter = label_scorer(config, corpora.private.space).adapter
    found = feature_baselines(config, adapter, corpora.private, corpora.test, corpora.public, SILENT)
    return {
        "untuned": summary.before["mAP"],
        "tuned": summary.after["mAP"],
        "regression": found["feature_logistic_dp" if private else "feature_logistic"],
        "seconds": summary.seconds,
    }


def averaged(draws: list[dict[str, float]]) -> dict[str, float]:
    """Return the means of the figures of repeated runs of one seed."""
    return {key: float(np.mean([draw[key] for draw in draws])) for key in draws[0]}


def main() -> int:
    """Measure, print the table, and say how many bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=3, help="private runs of each seed, with fresh noise")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    seeds, draws = (1, 1) if chosen.quick else (chosen.seeds, chosen.draws)
    rows, held = [], 0
    for name, source in (one.split("=", 1) for one in chosen.corpora):
        for private in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                runs = [
                    averaged([measure(source, seed, private, folder) for _ in range(draws if private else 1)])
                    for seed in range(seeds)
                ]
            each = {key: [run[key] for run in runs] for key in runs[0]}
            paired = [run["tuned"] - run["regression"] for run in runs]
            held += np.mean(paired) >= 0
            rows.append({"corpus": name, "epsilon": 8 if private else "none", **each, "difference": paired})
            if not chosen.json:
                shown = " | ".join(interval(each[key]) for key in ("untuned", "tuned", "regression"))
                seconds = np.mean(each["seconds"])
                print(f"| {name} | {rows[-1]['epsilon']} | {shown} | {interval(paired)} | {seconds:.0f} |", flush=True)
    if chosen.json:
        print(json.dumps(rows))
    print(f"{held} of {len(rows)} bars hold")
    return 0 if held == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
