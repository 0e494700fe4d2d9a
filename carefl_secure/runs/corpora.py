"""From the configuration to three corpora and each client's share of the private one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config
from carefl_secure.data.open_corpus import open_corpus
from carefl_secure.data.partition import partition
from carefl_secure.data.records import Corpus, LabelSpace
from carefl_secure.data.splits import Subset, split
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import Reporter

__all__ = ["Corpora", "declared_space", "load_own", "load_parts", "open_only", "share_out"]

_PRIVATE = 8000  # records of the embedded corpus, where the configuration gives no number
_PUBLIC, _TEST, _OPEN = 0.1, 0.15, 0.5  # the other splits, as shares of that number
_LEAST = 40


@dataclass(frozen=True)
class Corpora:
    """What a run works on.

    Parameters
    ----------
    private : Corpus
        What the promise is about; only clients see it.
    public : Corpus
        Open to everybody: decision thresholds are chosen on it.
    test : Corpus
        Scored on the server; not protected.
    open : Corpus
        Unprotected as well: the simple baselines are fitted on it. On the embedded corpus it is
        drawn apart, with the private annotators' habits; otherwise it is ``public``.
    shares : list of ndarray of int64
        Indices into ``private``, one array per client, disjoint.
    """

    private: Corpus
    public: Corpus
    test: Corpus
    open: Corpus
    shares: list[npt.NDArray[np.int64]]


def declared_space(config: Config) -> LabelSpace | None:
    """Return the labels that ``data.words`` declares; None where it declares none."""
    if config.data.words is None:
        return None
    # The name is fixed too: it decides what the model is asked.
    return LabelSpace("declared", config.data.words, config.data.multi)


def load_parts(config: Config, reporter: Reporter) -> Corpora:
    """Draw or read the corpora; nobody has a share of the private one yet."""
    if config.data.synthetic:
        private, public, test, unheld = _drawn(config, reporter)
        return Corpora(private, public, test, unheld, [])
    private, public, test = _read(config, reporter)
    return Corpora(private, public, test, public, [])


def share_out(config: Config, private: Corpus) -> list[npt.NDArray[np.int64]]:
    """Return each client's share of a private corpus."""
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
            part,
            count,
            task=task,
            view=config.data.view,
            seed=seed,
            cache=config.data.cache_dir,
            reporter=reporter,
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


def _read(config: Config, reporter: Reporter) -> tuple[Corpus, Corpus, Corpus]:
    """Read a folder; its own test split is kept where it has one, the rest is cut by subject."""
    path = Path(config.data.source)
    parts = open_corpus(
        path,
        task=config.data.labels,
        view=config.data.view,
        reporter=reporter,
        space=declared_space(config),
    )
    whole = _labelled(parts["all"] if "all" in parts else parts.get("train"), path)
    public, test = config.data.public_fraction, config.data.test_fraction
    scored = parts.get("test") or parts.get("val")
    shares = {"private": 1.0 - public - test, "public": public, "test": test}
    if scored is not None:
        shares = {"private": 1.0 - public, "public": public}
    cut = split(whole, shares, config.data.seed)
    for name, indices in cut.items():
        if not indices:
            raise DataError(
                f"the {name} split of {path} is empty: {len(whole.records)} records are too few; "
                "add images, or change data.public_fraction and data.test_fraction"
            )
    made = {name: Subset(whole, tuple(indices)) for name, indices in cut.items()}
    last = made["test"] if scored is None else _labelled(scored, path)
    return made["private"], made["public"], last


def _labelled(corpus: Corpus | None, path: Path) -> Corpus:
    """Leave out what has no label: it can be neither learnt nor scored."""
    known = [] if corpus is None else [i for i, r in enumerate(corpus.records) if r.labels]
    if corpus is None or not known:
        raise DataError(
            f"{path} has no labelled training records; train on a corpus that has, and use this "
            "one for scoring only"
        )
    return corpus if len(known) == len(corpus.records) else Subset(corpus, tuple(known))


def open_only(found: Corpora, config: Config) -> Corpora:
    """Return the server's corpora: what would be private goes to the public and test splits.

    Parameters
    ----------
    found : Corpora
        As read on one machine; nobody has a share yet.
    config : Config
    """
    nothing: Corpus = Subset(found.private, ())
    if config.data.synthetic:  # drawn apart already
        return Corpora(nothing, found.public, found.test, found.open, [])
    whole = found.private.corpus if isinstance(found.private, Subset) else found.private
    public, test = config.data.public_fraction, config.data.test_fraction
    if isinstance(found.test, Subset) and found.test.corpus is whole and public and test:
        share = public / (public + test)
        cut = split(whole, {"public": share, "test": 1 - share}, config.data.seed)
        parts = {name: Subset(whole, tuple(places)) for name, places in cut.items()}
        return Corpora(nothing, parts["public"], parts["test"], parts["public"], [])
    return Corpora(nothing, found.public, found.test, found.public, [])


def load_own(config: Config, reporter: Reporter) -> Corpora:
    """Read a site's own folder: all its training records are private, and its clients' only share.

    Raises
    ------
    DataError
        If the folder is unusable or holds no labelled training record.
    LabelError
        If a label is not among those that were agreed on.
    """
    path, space = Path(config.data.source), declared_space(config)
    if config.data.labels == "auto" and space is None:
        raise LabelError("the run declares no labels; name data.labels or list data.words")
    parts = open_corpus(
        path,
        task=config.data.labels,
        view=config.data.view,
        reporter=reporter,
        space=space,
    )
    whole = parts["all"] if "all" in parts else parts.get("train")
    places = [] if whole is None else [i for i, one in enumerate(whole.records) if one.labels]
    if whole is None or not places:
        raise DataError(f"{path} has no labelled training records; add some, or leave the run")
    held = Subset(whole, tuple(places))
    nothing = Subset(whole, ())
    return Corpora(held, nothing, nothing, nothing, [np.arange(len(places), dtype=np.int64)])
