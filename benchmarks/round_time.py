"""What the time of a client's sum tells of its sample, with and without padding.

``python benchmarks/round_time.py [--quick] [--json]``. One client of the default run draws Poisson
samples and sums their clipped gradients, once as they are and once padded (`privacy.pad_rounds`).
The correlation of CPU time and sample size is what an observer gains. The last line says how many
bars hold; the exit code is 1 where one is missed.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile

import numpy as np
from _bench import Bar, Report, arguments, cpu, finish

from carefl_secure.config import load_config
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.prompts import QUESTIONS
from carefl_secure.noise import KeyStream, SystemKeySource
from carefl_secure.privacy import poisson_sample
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.privacy.sampling import sample_bound
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.client_task import model_tasks
from carefl_secure.runs.staged_corpora import load_corpora


def main() -> int:
    """Draw, sum, take the time, judge."""
    options = arguments(__doc__)
    rounds = 15 if options.quick else 60
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, [f"data.cache_dir={folder}", f"run.dir={folder}"]).with_sample_rate()
        corpora = load_corpora(config, SilentReporter())
        base = load_base(quantization=config.model.quantization, parallel_batches=1)
        adapter = Adapter(base, rank=config.adapter.rank, alpha=config.adapter.alpha)
        plain = model_tasks(
            LabelScorer(adapter, corpora.private.space, QUESTIONS["emotic"]),
            corpora,
            Clipping(config.privacy.clipping_norm, config.privacy.normalise, micro_batch=32),
            SilentReporter(),
        )[0]
    rate, point = config.sample_rate, adapter.vector()
    bound = sample_bound(plain.records, rate)
    padded = dataclasses.replace(plain, rows=bound)
    sizes, seconds = [], []
    plain.clipped_sum(point, np.arange(8), 1)  # warm
    for _ in range(rounds):  # interleaved, so that a busy machine slows both alike
        drawn = poisson_sample(plain.records, rate, KeyStream(SystemKeySource().key("sample")))
        sizes.append(drawn.size)
        sums = [functools.partial(task.clipped_sum, point, drawn, 1) for task in (plain, padded)]
        seconds.append([cpu(work)[1] for work in sums])
    taken = np.array(seconds)
    leak = [abs(float(np.corrcoef(sizes, column)[0, 1])) for column in taken.T]
    mean = taken.mean(axis=0)
    report = Report("Time of a client's sum against its sample")
    for name, place in (("as drawn", 0), ("padded", 1)):
        report.rows.append(
            {
                "sum": name,
                "records": f"{min(sizes)}-{max(sizes)}" if place == 0 else str(bound),
                "seconds": f"{mean[place]:.3f}",
                "spread": f"{taken[:, place].std() / mean[place]:.1%}",
                "|correlation|": f"{leak[place]:.2f}",
            }
        )
    report.notes.append(f"padding costs {mean[1] / mean[0]:.2f} times the time of a sum")
    chance = 3.0 / np.sqrt(rounds)  # three deviations of a correlation between unrelated figures
    report.bars += [
        Bar("time tells the sample where it is not padded", leak[0], 0.8),
        Bar("time of padded sums tells no more than chance", leak[1], chance, at_least=False),
    ]
    return finish(report, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
