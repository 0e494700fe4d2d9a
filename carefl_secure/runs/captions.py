"""From the configuration to a caption for every record, on the clients and on the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from carefl_secure.captions.cache import CaptionCache
from carefl_secure.captions.controls import Donors, arrange, drop, leakage
from carefl_secure.captions.prompts import STAND_IN, describe_corpus
from carefl_secure.captions.run import read_captions
from carefl_secure.config import Config
from carefl_secure.data.records import Corpus
from carefl_secure.progress import Reporter
from carefl_secure.runs.corpora import Corpora, read_folder
from carefl_secure.runs.staged_corpora import load_corpora


@dataclass(frozen=True)
class Contexts:
    """One caption per record of a run, used in the prompt and in no message."""

    private: list[str]  # follows corpora.private; each client sees its own share only
    public: list[str]  # these and `test` are of the server's own images
    test: list[str]


def load_contexts(config: Config, corpora: Corpora, reporter: Reporter) -> Contexts | None:
    """Read or make the captions that ``model.context`` asks for, if any; DataError where the cache lacks one."""
    said = captions_of(config, corpora, reporter)
    if said is None:
        return None
    made = Contexts(said(corpora.private), said(corpora.public), said(corpora.test))
    if config.model.context == "own":
        share = leakage(corpora.public, made.public).stem
        reporter.note(f"{share:.1%} of the public captions name an emotion of the label space")
    return made


def captions_of(config: Config, corpora: Corpora, reporter: Reporter) -> Callable[[Corpus], list[str]] | None:
    """Return a function from any corpus to its captions in this run; None where there are none.

    Under ``shuffled`` and ``wrong`` all captions are those of public records, so that a private
    record decides no caption but its own. A missing caption raises `DataError`, here for public
    records, in the function itself for others.
    """
    control, seed = config.model.context, config.run.seed
    if control == "none":
        return None
    source = _source(config, reporter)
    donors = None
    if control in ("shuffled", "wrong"):
        donors = Donors(corpora.public, source(corpora.public))

    def said(corpus: Corpus) -> list[str]:
        own = source(corpus) if control == "own" else None
        given = arrange(control, corpus, own, donors, seed) or []
        return drop(given, corpus, config.model.context_dropout, seed)

    return said


def _source(config: Config, reporter: Reporter) -> Callable[[Corpus], list[str]]:
    if config.model.context == "constant":
        return lambda corpus: []
    if config.model.context_cache is not None:
        cache = CaptionCache.find(config.model.context_cache)
        reporter.note(
            f"captions: by {cache.facts.get('model')}, view {cache.facts.get('view')}, from the cache on this machine"
        )
        return lambda corpus: read_captions(corpus, cache)
    rate = config.model.context_error
    reporter.note(STAND_IN.format(rate=rate))
    return lambda corpus: describe_corpus(corpus, rate, config.run.seed)


def caption_parts(config: Config, reporter: Reporter) -> dict[str, Corpus]:
    """Return every part of ``data.source`` that a run on it would want captions of."""
    if not config.data.synthetic:
        return read_folder(config, reporter)[0]
    corpora = load_corpora(config, reporter)
    return {"private": corpora.private, "public": corpora.public, "test": corpora.test}
