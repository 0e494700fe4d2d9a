"""The corpora of a run: cut once, so that a record is in one place in all of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config
from carefl_secure.config.root import stage_config
from carefl_secure.data.checks.examine import warnings
from carefl_secure.data.deduplication.duplicates import held_twice
from carefl_secure.data.deduplication.image_hashes import hash_images
from carefl_secure.data.records import Corpus
from carefl_secure.data.splits import Subset
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.progress import Reporter
from carefl_secure.runs.corpora import Corpora, load_parts, open_only, share_out

Shares = list[npt.NDArray[np.int64]]


def load_corpora(config: Config, reporter: Reporter) -> Corpora:
    """Return what `load_stages` does for the last stage."""
    return load_stages(config, reporter)[-1]


def stage_configs(config: Config) -> list[Config]:
    """Return each stage's settings as those of a run of its own; of a plain run, its own."""
    count = len(config.stages.spaces)
    return [stage_config(config, place) for place in range(count)] or [config]


def load_stages(config: Config, reporter: Reporter) -> list[Corpora]:
    """Draw or read what each stage works on, and share it out once; a plain run has one stage.

    On the embedded corpus the stages see the same pictures with other labels; under ``compound`` only those that have
    a compound label. On a folder the stages have pictures of their own, and whatever also stands in a later stage,
    pixel by pixel, is left out of the earlier ones. In a run among sites, the corpora are what the server holds.
    Raises `ConfigError` if a client would have no record in some stage or a protected person is at two clients,
    `DataError` if a folder cannot be read or nothing remains of a stage.

    Guarantees
    ----------
    A private record is at the same client in every stage that has it. No private record of one
    stage is public or scored in another: splits of the embedded corpus are drawn apart for all
    labels alike, and those of a folder share no picture with another stage after the check.
    """
    found = [load_parts(one, reporter) for one in stage_configs(config)]
    if config.data.at_sites:
        return [open_only(one, config) for one in found]
    if len(found) > 1 and not config.data.synthetic:
        found = _apart(found, config.stages.spaces, reporter)
    shares = _share_once(config, found)
    for space, held in zip(config.stages.spaces, shares, strict=False):
        if any(not len(share) for share in held):
            raise ConfigError(
                f"a client would have no record with {space} labels, and every client takes part in every stage; add "
                "records, lower federation.clients, or choose another data.partition"
            )
    if len(found) > 1 and config.privacy.unit == "person":
        _check_persons(found, shares)
    if not config.data.synthetic:
        for one, held in zip(found, shares, strict=True):
            _warn(one, held, reporter)
    return [replace(one, shares=held) for one, held in zip(found, shares, strict=True)]


def _warn(found: Corpora, shares: Shares, reporter: Reporter) -> None:
    """Say what of a folder's records weakens the promise or the scores."""
    for line in warnings(found.private, found.test, shares):
        reporter.note(line)
    held = [share.tolist() for share in shares]
    for groups, what in ((found.equal, "images"), (found.near, "pairs of nearly equal images")):
        if twice := held_twice(groups, held):
            reporter.note(
                f"warning: {twice} {what} are held by several clients: the promise covers each "
                "copy on its own, not all copies of one image together"
            )


def _share_once(config: Config, found: Sequence[Corpora]) -> list[Shares]:
    """Share the widest private corpus out; the others follow it by key."""
    owner: dict[str, int] = {}
    shares: dict[int, Shares] = {}
    for place in sorted(range(len(found)), key=lambda i: -len(found[i].private.records)):
        records = found[place].private.records
        known = sum(record.key in owner for record in records)
        if known not in (0, len(records)):
            raise DataError(
                f"{known} of the {len(records)} records of stage {place + 1} also stand in another stage, and the "
                "rest does not; give every picture all its labels, or none but one stage's"
            )
        if known:
            clients = np.array([owner[record.key] for record in records])
            shares[place] = [np.flatnonzero(clients == client) for client in range(config.federation.clients)]
            continue
        shares[place] = share_out(config, found[place].private)
        for client, share in enumerate(shares[place]):
            owner |= {records[i].key: client for i in share.tolist()}
    return [shares[place] for place in range(len(found))]


def _check_persons(found: Sequence[Corpora], shares: Sequence[Shares]) -> None:
    home: dict[str, int] = {}
    for one, held in zip(found, shares, strict=True):
        for client, share in enumerate(held):
            for i in share.tolist():
                subject = one.private.records[i].subject
                if subject is not None and home.setdefault(subject, client) != client:
                    raise ConfigError(
                        "records of one person are at several clients in different stages, and privacy.unit=person "
                        "protects a person at one client only; set privacy.unit=record, or data.partition=column "
                        "with data.column=subject on a corpus whose stages share their records"
                    )


def _apart(found: list[Corpora], spaces: Sequence[str], reporter: Reporter) -> list[Corpora]:
    """Leave out of every stage the pictures that a later one holds as well."""
    later: set[bytes | None] = set()
    kept: list[Corpora] = []
    for space, one in zip(reversed(spaces), reversed(found), strict=True):
        dropped, seen = 0, set[bytes | None]()
        parts: dict[str, Corpus] = {}
        for name in ("private", "public", "test"):
            corpus: Corpus = getattr(one, name)
            prints = hash_images(corpus, reporter)
            seen |= {mark.pixels for mark in prints} - {None}
            keep = sorted(i for mark in prints if mark.pixels not in later for i in mark.records)
            if not keep:
                raise DataError(
                    f"every {name} picture of the {space} stage also stands in a later stage; "
                    "give the stages different pictures"
                )
            dropped += len(corpus.records) - len(keep)
            parts[name] = corpus if len(keep) == len(corpus.records) else Subset(corpus, tuple(keep))
        if dropped:
            reporter.note(f"{dropped} records of the {space} stage left out: a later stage has their pictures")
        later |= seen
        public = parts["public"]
        kept.append(Corpora(parts["private"], public, parts["test"], public, [], one.duplicates))
    return kept[::-1]
