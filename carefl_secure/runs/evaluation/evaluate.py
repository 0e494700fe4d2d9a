"""Scores a finished run on records that are not private: figures, groups and cost."""

from __future__ import annotations

import base64
import io
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config, load_config
from carefl_secure.data.clips import as_clips
from carefl_secure.data.corpora.base import ReadOptions
from carefl_secure.data.open_corpus import detect, open_corpus
from carefl_secure.data.records import Corpus, LabelSpace, targets
from carefl_secure.data.splits import Subset
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.evaluation.assess import Cost, Evaluation, Example, Known, Scored, assess, attributes_of
from carefl_secure.evaluation.groups import Settings
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.prompts import WHOLE
from carefl_secure.model.saved import load_saved
from carefl_secure.model.vision.encode import encode_record, record_features
from carefl_secure.model.vision.store import Features
from carefl_secure.model.vision.tiles import Tiles, tiles_in
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import RunFolder, make_folder, write_atomically
from carefl_secure.runs.build import evaluation_batch, label_scorer
from carefl_secure.runs.captions import captions_of
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.saved_model.predict import check_score_file, predicted, score_file
from carefl_secure.runs.staged_corpora import load_corpora

T = TypeVar("T")


class ScoredRun:
    """A run's settings, public records and model, loaded on first use; `RunError` if missing."""

    def __init__(self, run: Path, reporter: Reporter) -> None:
        self.folder = RunFolder.open(run)
        self.config = load_config(self.folder.config, ())
        self.reporter = reporter
        self.name = self.folder.path.resolve().name
        self.batch = evaluation_batch(self.config)

    @cached_property
    def corpora(self) -> Corpora:
        """Return the records of the run; no picture of a private one is read."""
        return load_corpora(self.config, self.reporter)

    def split(self, name: str) -> Corpus:
        """Return the run's own ``test`` or ``public`` split."""
        return self.corpora.test if name == "test" else self.corpora.public

    def scorer(self, space: LabelSpace) -> LabelScorer:
        """Return the base model with a fresh adapter, which changes nothing: B is zero."""
        return label_scorer(self.config, space)

    @cached_property
    def _captions(self) -> Callable[[Corpus], list[str]] | None:
        return captions_of(self.config, self.corpora, self.reporter)

    def captions(self, corpus: Corpus) -> list[str] | None:
        """Return the captions of a corpus; None where the run uses none."""
        return self._captions(corpus) if self._captions else None

    def features(self, scorer: LabelScorer, corpus: Corpus) -> Features:
        """Encode the pictures of a corpus."""
        return record_features(scorer.adapter, corpus, self.reporter)

    def untuned_and_tuned(self, scorer: LabelScorer, answer: Callable[[], T]) -> tuple[T, T]:
        """Return answers of the fresh adapter, and of the run's own, which must exist and fit."""
        untuned = answer()
        load_saved(scorer.adapter, self.folder.adapter)
        return untuned, answer()

    def write(self, name: str, text: str) -> Path:
        """Write ``RUN/evaluation/NAME`` and return its path."""
        file = self.folder.path / "evaluation" / name
        make_folder(file.parent)
        write_atomically(file, text.encode())
        return file


Split = Literal["test", "public"]
Scores = npt.NDArray[np.float32]

_TIMED = 32  # images whose latency is measured, one at a time
_WARM = 2
_EXAMPLES, _PIXELS = 8, 128  # pictures that are shown, and their longer side at most
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
    predictions: Path | None = None,
) -> Evaluated:
    """Score a run's adapter, and write ``RUN/evaluation/evaluation.json``.

    Only the server's own splits, or another corpus that is named, are scored: no picture of a
    private record is read. A few pictures of the public split go into the result, with their answers; none of another
    split does, nor of ``data``. Results of ``split="public"`` and of ``data`` are kept apart, in
    ``evaluation-public.json`` and ``evaluation-data.json``. Thresholds come from the public split.

    Of ``data``, another corpus, the test split is scored, else its val split, else all of it where it has no splits;
    ``labels`` and ``view`` say how to read it (:func:`carefl_secure.data.open_corpus.open_corpus`). ``predictions`` is
    a file for the score of every record, CSV or JSON Lines by its suffix. The corpus that the run was trained on
    raises `ConfigError`; a missing run, or a result that cannot be written, `RunError`; a missing adapter, or one that
    does not fit the run's settings, `ModelError`.
    """
    if predictions is not None:
        check_score_file(predictions)
    opened = ScoredRun(run, reporter)
    if data is None and (labels, view) != ("auto", "auto"):
        raise ConfigError("--labels and --view say how to read --data; name a corpus there")
    if data is not None:
        refuse_own(opened.config, data, split)
    chosen = settings or Settings(seed=opened.config.run.seed)
    corpus, name = opened.split(split), f"{split} split"
    if data is not None:
        corpus, name = _other(opened, data, labels, view)
    attributes_of(corpus.records, chosen.groups)  # refuse a wrong name before the long work
    scorer = opened.scorer(corpus.space)
    tuned, untuned, known = _scores(opened, scorer, corpus)
    reporter.note(f"scoring {len(corpus.records)} records, {chosen.replicates} resamples")
    images = (corpus.image(i) for i in range(len(corpus.records)))
    scored = Scored(opened.name, corpus.name, name, corpus.space, corpus.records, targets(corpus), images)
    found = assess(scored, tuned, untuned, known, chosen)
    remarks = list(found.remarks)
    if data is None and opened.corpora.duplicates:
        remarks.append(f"data: {opened.corpora.duplicates}")
    if data is None and split == "test":
        remarks += _compared_with_run(opened.folder, found.figures["mAP"])
    cost = _cost(scorer, corpus, opened.captions(corpus))
    examples = () if data is not None else _examples(opened, scorer, found)
    evaluation = replace(found, cost=cost, examples=examples, remarks=tuple(remarks))
    if predictions is not None:
        _write_predictions(predictions, corpus, tuned, evaluation)
    suffix = "-data" if data is not None else "" if split == "test" else f"-{split}"
    return Evaluated(evaluation, opened.write(f"evaluation{suffix}.json", evaluation.as_json()))


def _cuts(evaluation: Evaluation) -> dict[str, float] | None:
    return {one.name: float(one.threshold or 0.0) for one in evaluation.labels} if evaluation.multi else None


def _examples(opened: ScoredRun, scorer: LabelScorer, evaluation: Evaluation) -> tuple[Example, ...]:
    """Answer a few pictures from all over the public split with the tuned adapter."""
    public = opened.corpora.public
    places = np.linspace(0, len(public.records) - 1, min(_EXAMPLES, len(public.records))).astype(np.int64)
    part, labels = Subset(public, places.tolist()), public.space.labels
    scores = scorer.all(opened.features(scorer, part), opened.batch, opened.captions(part))
    found = []
    for i, record in enumerate(part.records):
        answer, picture, file = predicted(labels, scores[i], _cuts(evaluation)), part.image(i).copy(), io.BytesIO()
        picture.thumbnail((_PIXELS, _PIXELS))
        picture.save(file, "JPEG", quality=85)
        shown = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        given = {name: answer.probability(name) for name in answer.labels}
        found.append(Example(shown, tuple(labels[k] for k in record.labels), given))
    return tuple(found)


def _write_predictions(path: Path, corpus: Corpus, scores: Scores, evaluation: Evaluation) -> None:
    """Write every record's scores, under the thresholds that decided."""
    labels, cuts = corpus.space.labels, _cuts(evaluation)
    with score_file(path) as file:
        for record, row in zip(corpus.records, scores, strict=True):
            file.write(record.key, predicted(labels, row, cuts), [labels[i] for i in record.labels])


def refuse_own(config: Config, data: Path, split: Split) -> None:
    """Refuse (`ConfigError`) a corpus with the run's own records, or one named with a split."""
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


def open_other(opened: ScoredRun, path: Path, how: ReadOptions) -> dict[str, Corpus]:
    """Open another corpus than the run's own, as clips where its records are clips."""
    parts, most = open_corpus(path, how), opened.config.model.frames
    return parts if most == 1 else {name: as_clips(corpus, most)[0] for name, corpus in parts.items()}


def _other(opened: ScoredRun, path: Path, labels: str, view: str) -> tuple[Corpus, str]:
    if detect(path).kind == "cexpr":
        raise ConfigError(
            "C-EXPR-DB is scored by videos and not by frames; use "
            "carefl_secure.runs.evaluation.zero_shot.evaluate_zero_shot"
        )
    parts = open_other(opened, path, ReadOptions(labels, view, reporter=opened.reporter))
    for name in ("test", "val", "all"):
        if name not in parts:
            continue
        corpus = parts[name]
        known = [i for i, record in enumerate(corpus.records) if record.labels]
        if not known:
            raise DataError(f"no record of the {name} part of {path} has a label to score by")
        if len(known) < len(corpus.records) and not corpus.space.multi:
            opened.reporter.note(f"{len(corpus.records) - len(known)} records without a label left out")
            corpus = Subset(corpus, tuple(known))
        return corpus, "all records" if name == "all" else f"{name} split"
    raise DataError(f"{path} has training records only; give a corpus with a test or val split")


def _scores(opened: ScoredRun, scorer: LabelScorer, corpus: Corpus) -> tuple[Scores, Scores, Known | None]:
    """Return tuned and untuned scores, and those that thresholds are chosen on."""
    public = opened.corpora.public
    own = corpus is public
    shared = corpus.space.labels == public.space.labels
    parts = [corpus, public] if corpus.space.multi and shared and not own else [corpus]
    inputs = [(opened.features(scorer, part), opened.captions(part)) for part in parts]

    def answer() -> list[Scores]:
        return [scorer.all(seen, opened.batch, words, opened.reporter) for seen, words in inputs]

    untuned, tuned = opened.untuned_and_tuned(scorer, answer)
    known = None
    if shared:
        again = own or len(parts) > 1
        known = Known(targets(public), tuned[-1] if again else None, untuned[-1] if again else None, own)
    return tuned[0], untuned[0], known


def _cost(scorer: LabelScorer, corpus: Corpus, words: list[str] | None) -> Cost:
    """Time single images from reading the file to all label scores, vision and text alike."""
    base, count = scorer.adapter.base, len(corpus.records)
    chosen = np.linspace(0, count - 1, min(_TIMED, count)).astype(np.int64).tolist()
    times = []
    for i in [*chosen[:1] * _WARM, *chosen]:
        # With no state that a label head reads: that of a record that was scored would only be looked up.
        scorer.adapter.base = replace(base, states=base.states.empty())
        started = time.perf_counter()
        features = encode_record(base, corpus, i)
        scorer.all(features, 1, [words[i]] if words else None)
        times.append(1000 * (time.perf_counter() - started))
    scorer.adapter.base = base
    seen = encode_record(base, corpus, chosen[0])
    layout = seen.grids[0] if isinstance(seen, Tiles) else WHOLE
    answers = base.prompter.answers(scorer.space.labels, reference=scorer.space.multi)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Cost(
        images=len(chosen),
        latency_p50_ms=float(np.percentile(times[_WARM:], 50)),
        latency_p95_ms=float(np.percentile(times[_WARM:], 95)),
        # Kilobytes, except on macOS.
        peak_memory_bytes=int(peak) * (1 if sys.platform == "darwin" else 1024),
        prompt_tokens=int(base.prompter.batch([scorer.question], [layout])[0].shape[1]),
        image_tokens=int(base.processor.image_seq_len) * tiles_in(layout),
        answer_tokens=sum(len(answer) for answer in answers),
    )


def _compared_with_run(folder: RunFolder, found: float) -> list[str]:
    """Return a remark where the run itself measured another mAP on the same split."""
    rows = [row for row in folder.read_metrics() if "mAP" in row]
    before = float(rows[-1]["mAP"]) if rows else found
    if abs(before - found) <= _SAME:
        return []
    words = "base, adapter, corpus or package have changed since, so these figures are not those of the run"
    return [f"the run itself measured mAP {before:.4f} on this split: {words}"]
