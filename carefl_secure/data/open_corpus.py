"""The registry of corpus formats: which of them a folder has, and its splits, ready to train on.

To add one, write a file in :mod:`carefl_secure.data.corpora` that ends in a
:class:`~carefl_secure.data.corpora.base.CorpusFormat`, and name it in :data:`FORMATS`. A format of
one's own, outside the package, is a Python entry point in the group ``carefl_secure.corpora``; it
is used where ``data.format`` names it, and never by resemblance.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from carefl_secure.data.corpora import caers, cexpr, fer2013, image_folder, rafdb
from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, ReadOptions
from carefl_secure.data.corpora.emotic import mat, table
from carefl_secure.data.readers.inventory import count_unused
from carefl_secure.data.records import PUBLISHED_SPACES, Corpus
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.extensions import find_extension

ENTRY_POINTS = "carefl_secure.corpora"  # the entry point group of formats that other packages bring
FORMATS: Mapping[str, CorpusFormat] = {
    one.name: one
    for one in (
        *(mat.FORMAT, table.FORMAT, table.ARCHIVE_FORMAT, caers.FORMAT, caers.NCAERS_FORMAT),
        *(rafdb.FORMAT, rafdb.FOLDERS_FORMAT, cexpr.FORMAT, fer2013.FORMAT, image_folder.FORMAT),
    )
}
"""Formats of the package, in the order in which a folder is held against their marks."""


@dataclass(frozen=True)
class Layout:
    """What a folder was found to hold; ``tasks`` is empty where it brings its own labels."""

    format: CorpusFormat
    root: Path
    tasks: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The name of the format."""
        return self.format.name


def corpus_format(name: str) -> CorpusFormat:
    """Return the format that the package or one entry point provides under a name; else raise `ConfigError`."""
    if name in FORMATS:
        return FORMATS[name]
    value, loaded = find_extension(ENTRY_POINTS, "data.format", name, ("auto", *FORMATS))
    if not isinstance(loaded, CorpusFormat):
        raise ConfigError(
            f"data.format={name} is brought by {value}, which is a {type(loaded).__name__} and not a CorpusFormat; "
            "repair that package"
        )
    return loaded


def detect(root: Path, format: str = "auto") -> Layout:
    """Tell which corpus a folder holds, by its marks or as ``format`` says; `DataError` where it holds several."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds the corpus")
    rafdb.refuse_rafce(root)
    if format != "auto":
        chosen = corpus_format(format)
        return Layout(chosen, root, chosen.tasks(root, True))
    found: list[Layout] = []
    for one in FORMATS.values():
        family = one.name.split("-")[0].lstrip("n")
        tasks = one.tasks(root, False)
        if tasks and all(other.kind.split("-")[0].lstrip("n") != family for other in found):
            found.append(Layout(one, root, tasks))
    if len(found) > 1:
        raise DataError(
            f"{root} holds several corpora ({', '.join(one.kind for one in found)}); point at the "
            "folder of one of them, or name it in data.format"
        )
    if found:
        return found[0]
    if not any(files for _, _, files in os.walk(root, followlinks=True)):
        marks = "; ".join(one.looks_like for one in FORMATS.values())
        raise DataError(f"{root} is no corpus that is known, it is empty. Looked for: {marks}")
    return Layout(image_folder.FORMAT, root, ())


def _view(layout: Layout, view: str) -> str:
    known = layout.format.views
    if view == "auto":
        return "auto" if layout.kind == "rafdb" or not known else known[0]
    if view not in known:
        raise ConfigError(f"{layout.kind} has no view {view!r}; choose one of {', '.join(('auto', *known))}")
    return view


def _task(layout: Layout, task: str) -> str:
    if layout.format.own_labels:
        if task not in ("auto", *PUBLISHED_SPACES):
            raise ConfigError(f"unknown label space {task!r}; choose auto or one of {', '.join(PUBLISHED_SPACES)}")
        return task
    if task == "auto" and len(layout.tasks) == 1:
        return layout.tasks[0]
    if task not in layout.tasks:
        raise ConfigError(
            f"{layout.root} ({layout.kind}) can be read with the labels {', '.join(layout.tasks)}, "
            f"not {task!r}; choose one of them"
        )
    return task


def open_corpus(path: Path, options: ReadOptions | None = None, *, format: str = "auto") -> dict[str, Corpus]:
    """Detect a corpus and return the splits that it has; no pixel is read.

    Splits come in the order ``train``, ``val``, ``test``; ``all`` stands for a corpus without splits. Of ``options``,
    ``view`` is ``image`` or ``person`` (EMOTIC), ``image`` or ``face`` (CAER-S), ``aligned``, ``original`` or
    ``realigned`` (RAF-DB); ``auto`` takes the first that is there.

    Raises `DataError` or `LabelError` where the corpus is not usable, `ConfigError` where the format, the task or the
    view does not exist there.
    """
    options = options or ReadOptions()
    layout = detect(path, format)
    task, view = _task(layout, options.task), _view(layout, options.view)
    if options.space is not None and not layout.format.own_labels:
        raise ConfigError(
            f"{path} is {layout.kind}, which has labels of its own; name them in data.labels, and leave data.words out"
        )
    corpora = dict(layout.format.load(path, replace(options, task=task, view=view)))
    if layout.format.annotation:
        files = [one for one in corpora.values() if isinstance(one, FileCorpus)]
        used = {name for one in files for name in one.named}
        count_unused(path, used, layout.format.annotation, files[0].skipped)
    return corpora
