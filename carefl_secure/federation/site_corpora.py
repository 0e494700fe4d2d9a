"""The corpora of a deployment: the server holds no private record, a site nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from carefl_secure.config import Config
from carefl_secure.data.recognise import open_corpus
from carefl_secure.data.records import Corpus
from carefl_secure.data.splits import Subset, split
from carefl_secure.errors import DataError, LabelError
from carefl_secure.federation.corpora import Corpora, declared_space
from carefl_secure.progress import Reporter

__all__ = ["load_own", "open_only"]


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
