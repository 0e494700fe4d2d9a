"""Which published corpus a folder holds, and its splits, ready to train on.

``emotic-mat``, ``emotic-table``, ``emotic-archive``
    EMOTIC with ``Annotations.mat``, as ``emotic_pre``, or as ``annots_arrs``.
``caers``, ``ncaers``
    CAER-S, and the selection of it without shared videos.
``rafdb``, ``rafdb-folders``
    RAF-DB, and copies of it with numbered class folders.
``cexpr``
    C-EXPR-DB and its challenge.
``imagefolder``
    Anything in the layout of :mod:`carefl_secure.data.corpora.image_folder`, whole or below folders
    ``train``, ``val`` and ``test``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from carefl_secure.data.corpora.caers import caers_base, load_caers
from carefl_secure.data.corpora.cexpr import cexpr_bases, load_cexpr
from carefl_secure.data.corpora.emotic.archive import archive_folder, load_emotic_archive
from carefl_secure.data.corpora.emotic.mat import load_emotic, mat_file
from carefl_secure.data.corpora.emotic.table import load_emotic_csv, table_folder
from carefl_secure.data.corpora.image_folder import SUFFIXES, FolderCorpus, load_imagefolder
from carefl_secure.data.corpora.ncaers import load_ncaers, ncaers_base
from carefl_secure.data.corpora.rafdb import (
    load_rafdb,
    numbered_subset,
    refuse_rafce,
    subset_root,
)
from carefl_secure.data.deduplication.duplicates import drop_shared
from carefl_secure.data.deduplication.image_hashes import fingerprints
from carefl_secure.data.label_spaces import PUBLISHED_SPACES
from carefl_secure.data.records import Corpus, LabelSpace
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.progress import Reporter

__all__ = ["KINDS", "Disjoint", "Layout", "open_corpus", "recognise", "split_folders"]

Disjoint = Literal["no", "exact", "near"]
_VIEWS: Mapping[str, tuple[str, ...]] = {
    "emotic-mat": ("image", "person"),
    "emotic-table": ("image", "person"),
    "emotic-archive": ("image", "person"),
    "caers": ("image", "face"),
    "ncaers": ("image", "face"),
    "rafdb": ("aligned", "original", "realigned"),
    "rafdb-folders": (),
    "cexpr": (),
    "imagefolder": (),
}
KINDS = tuple(_VIEWS)
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Layout:
    """What was recognised.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    root : Path
        The folder that was looked at.
    tasks : tuple of str
        The label spaces it can be read with; empty where it brings its own.
    """

    kind: str
    root: Path
    tasks: tuple[str, ...]


def split_folders(root: Path) -> dict[str, Path]:
    """Return ``train``, ``val`` and ``test`` below an image folder, where it has nothing else."""
    if any((root / f"metadata.{kind}").is_file() for kind in ("jsonl", "csv")):
        return {}
    found = {}
    for sub in sorted(sub for sub in root.iterdir() if sub.is_dir()):
        name = _SPLITS.get(sub.name.lower())
        if name is None or name in found:
            return {}
        found[name] = sub
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def _has_images(root: Path) -> bool:
    if any((root / f"metadata.{kind}").is_file() for kind in ("jsonl", "csv")):
        return True
    return any(
        path.suffix.lower() in SUFFIXES
        for sub in root.iterdir()
        if sub.is_dir()
        for path in sub.iterdir()
    )


def recognise(root: Path) -> Layout:
    """Tell which corpus a folder holds, by its files and not by its name.

    Raises
    ------
    DataError
        If it holds none, or several; the text says what was looked for.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds the corpus")
    refuse_rafce(root)
    found: list[Layout] = []
    if mat_file(root):
        found.append(Layout("emotic-mat", root, ("emotic",)))
    elif table_folder(root):
        found.append(Layout("emotic-table", root, ("emotic",)))
    elif archive_folder(root):
        found.append(Layout("emotic-archive", root, ("emotic",)))
    if caers_base(root):
        found.append(Layout("caers", root, ("caers",)))
    elif ncaers_base(root):
        found.append(Layout("ncaers", root, ("caers",)))
    subsets = tuple(s for s in ("basic", "compound") if subset_root(root, s))
    numbered = numbered_subset(root)
    if subsets:
        found.append(Layout("rafdb", root, subsets))
    elif numbered:
        found.append(Layout("rafdb-folders", root, (numbered,)))
    if cexpr_bases(root):
        found.append(Layout("cexpr", root, ("cexpr",)))
    if len(found) > 1:
        raise DataError(
            f"{root} holds several corpora ({', '.join(one.kind for one in found)}); "
            "point at the folder of one of them"
        )
    if found:
        return found[0]
    parts = split_folders(root)
    if (parts and any(map(_has_images, parts.values()))) or _has_images(root):
        return Layout("imagefolder", root, ())
    raise DataError(
        f"{root} is no corpus that is known. Looked for: EMOTIC (Annotations/Annotations.mat, "
        "emotic_pre/train.csv, annots_arrs/annot_arrs_train.csv), CAER-S (CAER-S/train/Angry), "
        "NCAER-S (images/train/Anger), RAF-DB (basic/EmoLabel/list_patition_label.txt, "
        "compound/EmoLabel/..., train/1), C-EXPR-DB (cropped_aligned, videos, folds), an image "
        "folder (metadata.jsonl, or LABEL/IMAGE)"
    )


def _view(layout: Layout, view: str) -> str:
    known = _VIEWS[layout.kind]
    if view == "auto":
        return "auto" if layout.kind == "rafdb" or not known else known[0]
    if view not in known:
        raise ConfigError(
            f"{layout.kind} has no view {view!r}; choose one of {', '.join(('auto', *known))}"
        )
    return view


def _task(layout: Layout, task: str) -> str:
    if layout.kind == "imagefolder":
        if task not in ("auto", *PUBLISHED_SPACES):
            raise ConfigError(
                f"unknown label space {task!r}; choose auto or one of {', '.join(PUBLISHED_SPACES)}"
            )
        return task
    if task == "auto" and len(layout.tasks) == 1:
        return layout.tasks[0]
    if task not in layout.tasks:
        raise ConfigError(
            f"{layout.root} ({layout.kind}) can be read with the labels {', '.join(layout.tasks)}, "
            f"not {task!r}; choose one of them"
        )
    return task


def _open_folder(root: Path, task: str, check: bool, space: LabelSpace | None) -> dict[str, Corpus]:
    space = space if task == "auto" else PUBLISHED_SPACES[task]
    parts = split_folders(root) or {"all": root}
    name = root.resolve().name

    def load(space: LabelSpace | None, check: bool) -> dict[str, FolderCorpus]:
        return {
            part: load_imagefolder(path, space, name=f"{name}/{part}", check=check)
            for part, path in parts.items()
        }

    corpora = load(space, check)
    if space is None:
        labels = sorted({label for one in corpora.values() for label in one.space.labels})
        multi = any(one.space.multi for one in corpora.values())
        # Every split must count its labels alike.
        corpora = load(LabelSpace(name, tuple(labels), multi), False)
    return dict(corpora)


def open_corpus(
    path: Path,
    *,
    task: str = "auto",
    view: str = "auto",
    disjoint: Disjoint = "no",
    fold: int = 0,
    every: int = 1,
    check: bool = False,
    reporter: Reporter | None = None,
    space: LabelSpace | None = None,
) -> dict[str, Corpus]:
    """Recognise a corpus and return the splits that it has.

    Parameters
    ----------
    path : Path
        The folder.
    task : str
        The label space; ``auto`` where there is only one.
    view : str
        ``image`` or ``person`` (EMOTIC), ``image`` or ``face`` (CAER-S), ``aligned``,
        ``original`` or ``realigned`` (RAF-DB); ``auto`` takes the first that is there.
    disjoint : {"no", "exact", "near"}
        Leave out of val and test what an earlier split holds too, by equal pixels and by subject
        (the video, where it is known), and with ``near`` by nearly equal pictures as well. All
        images are read for that.
    fold, every : int
        For C-EXPR-DB: which fold, and every so-manieth frame.
    check : bool
        Read every image to its end now. Published corpora leave out and count what cannot be
        read; an image folder is refused.
    reporter : Reporter, optional
    space : LabelSpace, optional
        Labels that were agreed on, for an image folder; derived from the folder by default.

    Returns
    -------
    dict
        In the order ``train``, ``val``, ``test``, as far as they exist; ``all`` where there are
        no splits.

    Raises
    ------
    DataError
        If the corpus is not recognised or not usable.
    LabelError
        If a label is not in the space.
    ConfigError
        If the task or the view does not exist there.
    """
    layout = recognise(path)
    task, view = _task(layout, task), _view(layout, view)
    if disjoint != "no" and view == "person" and layout.kind in ("emotic-table", "emotic-archive"):
        raise ConfigError(
            f"{layout.kind} in the view of persons has lost which of them share an image, so its "
            "splits cannot be told apart; use the view image"
        )
    rest: dict[str, Any] = {"check": check, "reporter": reporter}
    corpora: dict[str, Corpus]
    if layout.kind == "imagefolder":
        corpora = _open_folder(path, task, check, space)
    elif space is not None:
        raise ConfigError(
            f"{path} is {layout.kind}, which has labels of its own; name them in data.labels, and "
            "leave data.words out"
        )
    elif layout.kind.startswith("rafdb"):
        subset: Any = task
        corpora = dict(load_rafdb(path, subset, view=view, **rest))  # type: ignore[arg-type]
    elif layout.kind == "cexpr":
        corpora = dict(load_cexpr(path, fold=fold, every=every, **rest))
    else:
        load: Any = {
            "emotic-mat": load_emotic,
            "emotic-table": load_emotic_csv,
            "emotic-archive": load_emotic_archive,
            "caers": load_caers,
            "ncaers": load_ncaers,
        }[layout.kind]
        corpora = dict(load(path, view=view, **rest))
    if disjoint != "no":
        prints = {name: fingerprints(corpus, reporter) for name, corpus in corpora.items()}
        kept, skipped = drop_shared(corpora, prints, near=disjoint == "near")
        for reason, count in skipped.dropped.items():
            if reporter:
                reporter.note(f"left out: {count} x {reason}")
        corpora = dict(kept)
    return corpora
