"""From the configuration to three corpora and each client's share of the private one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config
from carefl_secure.data.checks.examine import Examined, counts_line, examine, files_of, restrict, skipped_of
from carefl_secure.data.clips import as_clips
from carefl_secure.data.corpora.base import ReadOptions
from carefl_secure.data.corpora.image_folder import check_labels
from carefl_secure.data.deduplication.duplicates import Deduplicated, deduplicate, equal_records, exposed, near_records
from carefl_secure.data.open_corpus import open_corpus
from carefl_secure.data.partition import partition
from carefl_secure.data.readers.metadata import label_word
from carefl_secure.data.records import PUBLISHED_SPACES, Corpus, LabelSpace, Skipped
from carefl_secure.data.splits import Subset, split
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.errors import ConfigError, DataError, PrivacyError
from carefl_secure.progress import Reporter

_PRIVATE = 8000  # records of the embedded corpus, where the configuration gives no number
_PUBLIC, _TEST, _OPEN = 0.1, 0.15, 0.5  # the other splits, as shares of that number
_LEAST = 40


@dataclass(frozen=True)
class Corpora:
    """The corpora of a run."""

    private: Corpus  # seen by clients only, and covered by the privacy promise
    public: Corpus  # open to everybody; decision thresholds are chosen on it
    test: Corpus  # scored on the server
    open: Corpus  # what simple baselines are fitted on: drawn apart, with the private annotators' habits, or public
    shares: list[npt.NDArray[np.int64]]  # disjoint indices into private, one array per client
    duplicates: str = ""  # what was done about equal images, empty for the embedded corpus
    equal: Sequence[Sequence[int]] = ()  # groups of private records that show equal images
    near: Sequence[Sequence[int]] = ()  # pairs of nearly equal ones


def declared_space(config: Config) -> LabelSpace | None:
    """Return the labels that ``data.words`` declares, None where it declares none; LabelError for unfit ones."""
    if config.data.words is None:
        return None
    check_labels(config.data.words, config.data.multi, "data.words")
    # The name is fixed too: it decides what the model is asked.
    return LabelSpace("declared", tuple(map(label_word, config.data.words)), config.data.multi)


def agreed_space(config: Config) -> LabelSpace:
    """Return the label space that all sites of a run share, without a look at any record."""
    declared = declared_space(config)
    if declared is None and config.data.labels == "auto":
        raise ConfigError("the run declares no labels; name data.labels or list data.words")
    return declared or PUBLISHED_SPACES[config.data.labels]


def load_parts(config: Config, reporter: Reporter) -> Corpora:
    """Draw or read the corpora; nobody has a share of the private one yet."""
    if config.data.synthetic:
        private, public, test, unheld = _drawn(config, reporter)
        return Corpora(private, public, test, unheld, [])
    return _read(config, reporter)


def check_subjects(config: Config, private: Corpus) -> None:
    """Refuse a promise per person (`PrivacyError`) where a private record names no person."""
    if config.privacy.unit != "person":
        return
    nobody = sum(record.subject is None for record in private.records)
    whole = files_of(private)
    if nobody or (whole is not None and whole.subjects_are != "person"):
        raise PrivacyError(
            (
                f"{nobody} of {len(private.records)} private records have no subject"
                if nobody
                else f"the subjects of {private.name} are videos and not persons"
            )
            + ", and privacy.unit=person protects only persons who are named; name the subject of "
            "every record, or set privacy.unit=record"
        )


def share_out(config: Config, private: Corpus) -> list[npt.NDArray[np.int64]]:
    """Return each client's share of a private corpus; under unit person each record names one."""
    check_subjects(config, private)
    return partition(
        private,
        config.federation.clients,
        config.data.partition,
        alpha=config.data.alpha,
        column=config.data.column,
        seed=config.data.seed,
        together=config.privacy.unit == "person",
    )


def _drawn(config: Config, reporter: Reporter) -> tuple[Corpus, Corpus, Corpus, Corpus]:
    task = "emotic" if config.data.labels == "auto" else config.data.labels

    def draw(part: str, count: int, seed: int) -> Corpus:
        return synthetic_corpus(
            part, count, task=task, view=config.data.view, seed=seed, cache=config.data.cache_dir, reporter=reporter
        )

    seed = config.data.seed
    count = config.data.records or _PRIVATE
    public, test, unheld = (max(_LEAST, int(share * count)) for share in (_PUBLIC, _TEST, _OPEN))
    return (
        draw("private", count, seed),
        # Not the pictures that the embedded model was pretrained on.
        draw("public", public, seed + 1),
        draw("test", test, seed),
        draw("test", unheld, seed + 1),
    )


def read_folder(
    config: Config, reporter: Reporter, *, drop_undeclared: bool = False
) -> tuple[dict[str, Corpus], Deduplicated]:
    """Read ``data.source`` as ``data check`` does: the same records, skips and refusals.

    With ``drop_undeclared`` a record with a label outside the declared ones is left out, not
    refused. An image in two splits under ``data.deduplicate=refuse`` raises `DataError`.
    """
    how = ReadOptions(
        task=config.data.labels,
        view=config.data.view,
        space=declared_space(config),
        by_client=config.data.partition == "folder",
        drop_undeclared=drop_undeclared,
        reporter=reporter,
    )
    opened = open_corpus(Path(config.data.source), how, format=config.data.format)
    found = deduplicate(examine(opened, reporter), config.data.deduplicate)
    if (most := config.model.frames) > 1:
        clips = {name: as_clips(one, most, found.found.hashes[name]) for name, one in found.found.corpora.items()}
        marks = {name: held for name, (_, held) in clips.items()}
        found = replace(found, found=Examined({name: one for name, (one, _) in clips.items()}, marks))
        reporter.note(
            f"a record is a clip of up to {most} frames: what protects one record covers all frames of its clip, and "
            "no other clip of the same video"
        )
    return dict(found.found.corpora), found


def _read(config: Config, reporter: Reporter) -> Corpora:
    """Read a folder; its own test split is kept where it has one, the rest is cut by subject."""
    path = Path(config.data.source)
    parts, found = read_folder(config, reporter)
    chosen = "all" if "all" in parts else "train"
    whole = _labelled(parts.get(chosen), path)
    marks = found.found.hashes[chosen]
    if isinstance(whole, Subset) and whole is not parts[chosen]:
        marks = restrict(parts[chosen], marks, whole.indices)[1]
    public, test = config.data.public_fraction, config.data.test_fraction
    scored = parts.get("test") or parts.get("val")
    shares = {"private": 1.0 - public - test, "public": public, "test": test}
    if scored is not None:
        shares = {"private": 1.0 - public, "public": public}
    cut = split(whole, shares, config.data.seed, equal_records(marks))
    for name, indices in cut.items():
        if not indices:
            raise DataError(
                f"the {name} split of {path} is empty: {len(whole.records)} records are too few; "
                "add images, or change data.public_fraction and data.test_fraction"
            )
    made = {name: Subset(whole, tuple(indices)) for name, indices in cut.items()}
    last = made["test"] if scored is None else _labelled(scored, path)
    skipped = Skipped()
    for part in parts.values():
        skipped.merge(skipped_of(part))
    used = {"private": made["private"], "public": made["public"], "test": last}
    reporter.note(counts_line(used, skipped, str(path)))
    if found.repeated or found.shared:
        reporter.note(str(found))
    held = {name: restrict(whole, marks, indices)[1] for name, indices in cut.items()}
    shown = [*held["public"], *held.get("test", ())]
    if scored is not None:
        shown += found.found.hashes["test" if "test" in parts else "val"]
    if open_too := exposed(held["private"], shown):
        reporter.note(
            f"warning: {open_too} private images are nearly equal to public or scored ones, which no noise covers"
        )
    equal, near = equal_records(held["private"]), near_records(held["private"])
    public_part = made["public"]
    return Corpora(made["private"], public_part, last, public_part, [], str(found), equal, near)


def _labelled(corpus: Corpus | None, path: Path) -> Corpus:
    """Leave out what has no label, unless several may hold: then none of them holding counts."""
    records = [] if corpus is None else corpus.records
    known = [i for i, record in enumerate(records) if record.labels]
    if corpus is None or not known:
        raise DataError(
            f"{path} has no labelled training records; train on a corpus that has, and use this one for scoring only"
        )
    if corpus.space.multi or len(known) == len(records):
        return corpus
    return Subset(corpus, tuple(known))


def open_only(found: Corpora, config: Config) -> Corpora:
    """Return the server's corpora, without shares; private records go to public and test splits."""
    held = replace(found, private=Subset(found.private, ()), shares=[], equal=(), near=())
    whole = found.private.corpus if isinstance(found.private, Subset) else found.private
    public, test = config.data.public_fraction, config.data.test_fraction
    # Drawn corpora are apart already.
    if not config.data.synthetic and isinstance(found.test, Subset) and found.test.corpus is whole and public and test:
        share = public / (public + test)
        cut = split(whole, {"public": share, "test": 1 - share}, config.data.seed)
        parts = {name: Subset(whole, tuple(places)) for name, places in cut.items()}
        return replace(held, public=parts["public"], test=parts["test"], open=parts["public"])
    return held


def load_own(config: Config, reporter: Reporter) -> Corpora:
    """Read a site's own folder: all its training records are private, and its clients' only share.

    Records with a label that the run does not declare, and under unit person those that name nobody, are left out and
    counted: were they refused, the refusal would tell of them. No labelled training record raises `DataError`.
    """
    path = Path(config.data.source)
    space = agreed_space(config)
    parts, found = read_folder(config, reporter, drop_undeclared=True)
    whole = parts.get("all") or parts.get("train")
    if whole is None or not any(record.labels for record in whole.records):
        raise DataError(f"{path} has no labelled training records; add some, or leave the run")
    if whole.space != space:
        raise DataError(f"{path} has the labels of {whole.space.name}, the run {space.name}")
    held = _labelled(whole, path)
    skipped = skipped_of(held)
    if config.privacy.unit == "person":
        named = [i for i, record in enumerate(held.records) if record.subject is not None]
        for record in held.records:
            if record.subject is None:
                skipped.drop("no subject", record.key)
        held = Subset(held, tuple(named))
    check_subjects(config, held)
    reporter.note(counts_line({"private": held}, skipped, str(path)))
    nothing = Subset(whole, ())
    everything = [np.arange(len(held.records), dtype=np.int64)]
    return Corpora(held, nothing, nothing, nothing, everything, str(found))
