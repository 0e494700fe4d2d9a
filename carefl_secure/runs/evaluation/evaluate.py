"""Loads a finished run and scores it on records that nobody protects: figures, groups, cost."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.config import Config, load_config
from carefl_secure.data.open_corpus import open_corpus, recognise
from carefl_secure.data.records import Corpus, targets
from carefl_secure.data.splits import Subset
from carefl_secure.errors import ConfigError, DataError, RunError
from carefl_secure.evaluation.assess import Known, Settings, assess, attributes_of
from carefl_secure.evaluation.summary import Cost, Evaluation
from carefl_secure.model.features import vision_features
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.saved import load_saved
from carefl_secure.progress import Reporter, SilentReporter
from carefl_secure.run_folder import RunFolder, write_atomically
from carefl_secure.runs.build import label_scorer
from carefl_secure.runs.captions import captions_of
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.staged_corpora import load_corpora

__all__ = ["Evaluated", "Split", "evaluate", "refuse_own"]

Split = Literal["test", "public"]
_TIMED = 32  # images whose latency is measured, one at a time
_WARM = 2
_SAME = 1e-3  # how far mAP may be from what the run itself measured


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and the file that holds it."""

    evaluation: Evaluation
    file: Path


def evaluate(
    run: Path,
    reporter: Reporter,
    *,
    split: Split = "test",
    data: Path | None = None,
    labels: str = "auto",
    view: str = "auto",
    settings: Settings | None = None,
) -> Evaluated:
    """Score a run's adapter, and write ``RUN/evaluation/evaluation.json``.

    Only the server's own splits, or another corpus that is named, are scored: no picture of a
    private record is asked for. Other splits than the run's own test split have a file of their
    own, ``evaluation-public.json`` or ``evaluation-data.json``.

    Parameters
    ----------
    run : Path
        The run folder.
    reporter : Reporter
    split : {"test", "public"}
        Which of the run's open splits; thresholds come from ``public``.
    data : Path, optional
        Another corpus; its test split is scored, else its val split, else all of it where it has
        no splits.
    labels, view : str
        How to read that corpus; see :func:`carefl_secure.data.open_corpus.open_corpus`.
    settings : Settings, optional

    Returns
    -------
    Evaluated

    Raises
    ------
    RunError
        If there is no run, or the result cannot be written.
    ModelError
        If the run has no adapter, or it does not fit the run's settings.
    ConfigError
        If ``data`` is the corpus that the run was trained on, or options contradict each other.
    DataError
        If there is nothing to score.
    """
    folder = RunFolder.open(run)
    config = load_config(folder.config, ())
    if data is None and (labels, view) != ("auto", "auto"):
        raise ConfigError("--labels and --view say how to read --data; name a corpus there")
    if data is not None:
        refuse_own(config, data, split)
    corpora = load_corpora(config, reporter)
    chosen = settings or Settings(seed=config.run.seed)
    scored, name = (corpora.test if split == "test" else corpora.public), f"{split} split"
    if data is not None:
        scored, name = _other(data, labels, view, reporter)
    attributes_of(scored.records, chosen.groups)  # refuse a wrong name before the long work
    scorer = label_scorer(config, scored.space)
    said = captions_of(config, corpora, reporter)
    evaluation = replace(
        _scored(scorer, corpora, scored, name, folder, config, chosen, said, reporter),
        cost=_cost(scorer, scored, said),
    )
    if data is None and split == "test":
        evaluation = _held_against(folder, evaluation)
    suffix = "-data" if data is not None else "" if split == "test" else f"-{split}"
    file = folder.path / "evaluation" / f"evaluation{suffix}.json"
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {file.parent}: {error.strerror}") from error
    write_atomically(file, evaluation.as_json().encode())
    return Evaluated(evaluation, file)


def refuse_own(config: Config, data: Path, split: Split) -> None:
    """Refuse a corpus that holds the run's own records.

    Raises
    ------
    ConfigError
        If it does, or a split of the run is named beside it.
    """
    if split != "test":
        raise ConfigError("--split names a split of the run's own corpus; leave out --data for it")
    if config.data.synthetic:
        return
    own, other = Path(config.data.source).resolve(), data.resolve()
    if other == own or own in other.parents or other in own.parents:
        raise ConfigError(
            f"{data} holds records that the run was trained on, which are private; leave out "
            "--data to score the run's own test split"
        )


def _other(path: Path, labels: str, view: str, reporter: Reporter) -> tuple[Corpus, str]:
    if recognise(path).kind == "cexpr":
        raise ConfigError(
            "C-EXPR-DB is scored by videos and not by frames; use "
            "carefl_secure.runs.evaluation.zero_shot.evaluate_zero_shot"
        )
    parts = open_corpus(path, task=labels, view=view, reporter=reporter)
    for name in ("test", "val", "all"):
        if name not in parts:
            continue
        corpus = parts[name]
        known = [i for i, record in enumerate(corpus.records) if record.labels]
        if not known:
            raise DataError(f"no record of the {name} part of {path} has a label to score by")
        if len(known) < len(corpus.records):
            reporter.note(f"{len(corpus.records) - len(known)} records without a label left out")
            corpus = Subset(corpus, tuple(known))
        return corpus, "all records" if name == "all" else f"{name} split"
    raise DataError(f"{path} has training records only; give a corpus with a test or val split")


def _scored(
    scorer: LabelScorer,
    corpora: Corpora,
    scored: Corpus,
    split: str,
    folder: RunFolder,
    config: Config,
    settings: Settings,
    said: Callable[[Corpus], list[str]] | None,
    reporter: Reporter,
) -> Evaluation:
    base, batch = scorer.adapter.base, config.performance.evaluation_batch
    multi, own = scored.space.multi, scored is corpora.public
    features = vision_features(base, scored, reporter)
    shared = scored.space.labels == corpora.public.space.labels
    public = (
        vision_features(base, corpora.public, reporter) if multi and shared and not own else None
    )

    words = said(scored) if said else None
    open_words = said(corpora.public) if said and public is not None else None

    def scores() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        found = scorer.all(features, batch, words)
        if own or public is None:
            return found, found if own else None
        return found, scorer.all(public, batch, open_words)

    # A fresh adapter changes nothing: B is zero.
    untuned, known_untuned = scores()
    load_saved(scorer.adapter, folder.adapter)
    tuned, known_tuned = scores()
    known = Known(targets(corpora.public), known_tuned, known_untuned, own) if shared else None
    reporter.note(f"scoring {len(scored.records)} records, {settings.replicates} resamples")
    return assess(
        scored.records,
        scored.space,
        targets(scored),
        tuned,
        untuned,
        run=folder.path.resolve().name,
        corpus=scored.name,
        split=split,
        known=known,
        images=_images(scored),
        settings=settings,
    )


def _images(corpus: Corpus) -> Iterator[Image.Image]:
    return (corpus.image(i) for i in range(len(corpus.records)))


def _cost(scorer: LabelScorer, corpus: Corpus, said: Callable[[Corpus], list[str]] | None) -> Cost:
    """Time single images from reading the file to all label scores, vision and text alike."""
    base, count = scorer.adapter.base, len(corpus.records)
    chosen = np.linspace(0, count - 1, min(_TIMED, count)).astype(np.int64).tolist()
    silent = SilentReporter()
    words = said(corpus) if said else None  # made once, as a site would have them at hand
    times = []
    for i in [*chosen[:1] * _WARM, *chosen]:
        started = time.perf_counter()
        features = vision_features(base, Subset(corpus, (i,)), silent)
        scorer.all(features, 1, [words[i]] if words else None)
        times.append(1000 * (time.perf_counter() - started))
    answers = base.prompter.answers(scorer.space.labels, reference=scorer.space.multi)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Cost(
        images=len(chosen),
        latency_p50_ms=float(np.percentile(times[_WARM:], 50)),
        latency_p95_ms=float(np.percentile(times[_WARM:], 95)),
        # Kilobytes, except on macOS.
        peak_memory_bytes=int(peak) * (1 if sys.platform == "darwin" else 1024),
        prompt_tokens=int(base.prompter.batch([scorer.question])[0].shape[1]),
        image_tokens=int(base.processor.image_seq_len),
        answer_tokens=sum(len(answer) for answer in answers),
    )


def _held_against(folder: RunFolder, evaluation: Evaluation) -> Evaluation:
    """Say so where the run itself measured another mAP on the same split."""
    rows = [row for row in folder.read_metrics() if "mAP" in row]
    before = float(rows[-1]["mAP"]) if rows else evaluation.figures["mAP"]
    if abs(before - evaluation.figures["mAP"]) <= _SAME:
        return evaluation
    remark = (
        f"the run itself measured mAP {before:.4f} on this split: base, adapter, corpus or "
        "package have changed since, so these figures are not those of the run"
    )
    return replace(evaluation, remarks=(*evaluation.remarks, remark))
