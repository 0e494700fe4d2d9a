"""Image folders in the Hugging Face layout: metadata files next to the images, or class folders.

With ``metadata.jsonl`` or ``metadata.csv``, at the root or below it, every row is a record:

``file_name``
    Path below the folder of the metadata file. Rows of several persons may name one image.
``label`` or ``labels``
    One label word, or a list; see :mod:`carefl_secure.data.readers.metadata`. An empty list is a
    record for which none of the labels holds; null marks an unlabelled record, which is left out.
``subject``, ``box`` or ``bbox``, ``split``
    Optional: who is shown; the person, ``[left, top, right, bottom]`` in pixels of the upright
    image; ``train``, ``val`` or ``test``, where the folders do not say it.

Every other column with a plain value is an attribute. Without metadata each folder is a label and
holds its images. Splits are folders above either of the two.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, ReadOptions, SplitBuilder
from carefl_secure.data.corpora.image_folder_layout import Part, read_layout
from carefl_secure.data.readers.images import ImageFile
from carefl_secure.data.readers.inventory import Inventory, take_inventory
from carefl_secure.data.readers.metadata import Row, label_word
from carefl_secure.data.records import PUBLISHED_SPACES, LabelSpace, Record
from carefl_secure.errors import DataError, LabelError

_MARKS = re.compile(r"<(image|global-img|fake_token_around_image|end_of_utterance|row_\d+_col_\d+|\|\w+\|)>")
_LONGEST = 200
_LIST = re.compile(r"""[\[{(](\s*|.*['",].*)[\]})]""", re.DOTALL)  # but not a word in brackets


def _derive(parts: Sequence[Part], name: str) -> LabelSpace:
    """Return the labels of all splits; two spellings of one word are refused."""
    words = sorted({word for part in parts for row in part.rows for word in row.labels or ()})
    several = any(row.several for part in parts for row in part.rows)
    check_labels(words, several, name)
    return LabelSpace(name, tuple(words), several)


def check_labels(words: Sequence[str], several: bool, name: str) -> None:
    """Raise LabelError for a word of ``name`` that is blank, a list or unfit for a prompt, and for two spellings."""
    for word in words:
        _refuse_list(word, words, several, name)
    if twice := _spelled_twice(words):
        raise LabelError(
            f"the labels {twice[0]!r} and {twice[1]!r} of {name} differ in case or blanks alone; spell them alike"
        )


def _spelled_twice(words: Sequence[str]) -> tuple[str, str] | None:
    """Return two words that differ in case, blanks or signs without ink alone."""
    spelled: dict[str, str] = {}
    for word in words:
        shown = "".join(c for c in unicodedata.normalize("NFKC", word) if c.isprintable())
        bare = " ".join(shown.casefold().replace("_", " ").replace("-", " ").split())
        if (other := spelled.setdefault(bare, word)) != word:
            return other, word
    return None


def _check_subjects(parts: Sequence[Part]) -> None:
    """Refuse two spellings of one person, who would count, and be protected, as two."""
    persons = {row.subject for part in parts for row in part.rows if row.subject is not None}
    if twice := _spelled_twice(sorted(persons)):
        raise DataError(
            f"the subjects {twice[0]!r} and {twice[1]!r} differ in case or blanks alone; spell "
            "one person alike, or tell two persons apart by more"
        )


def _refuse_list(word: str, words: Sequence[str], several: bool, name: str) -> None:
    """Refuse a label that is a list, or that other labels make up."""
    signs = [",", ";", "|", "/", "+", "&", "\t", "\n", *([" "] if several else [])]
    if not word.isprintable() and any(unicodedata.category(sign) == "Cc" for sign in word):
        raise LabelError(f"the label {word!r} of {name} holds a control character; rename it")
    if not word.strip():
        raise LabelError(f"a label of {name} is blank; name it")
    if len(word) > _LONGEST or _MARKS.search(word):
        why = f"is longer than {_LONGEST} characters" if len(word) > _LONGEST else "holds a mark of the model's prompt"
        raise LabelError(f"the label {word[:60]!r} of {name} {why}; rename it")
    parts = {sign: {label_word(part) for part in word.split(sign)} for sign in signs if sign in word}
    known = set(words)
    if _LIST.fullmatch(word) or any(made <= known or (sign != " " and made & known) for sign, made in parts.items()):
        raise LabelError(
            f"the label {word!r} of {name} looks like several labels; write 'labels' as a list in "
            "metadata.jsonl, or as words separated by | in metadata.csv"
        )


def _build(
    part: Part, inventory: Inventory, images: frozenset[str], space: LabelSpace, name: str,
    drop: bool,
) -> SplitBuilder:  # fmt: skip
    builder, seen = SplitBuilder(f"{name}/{part.name}", space), dict[str, int]()
    said: dict[object, tuple[str, ...]] = {}
    for row in part.rows:
        if row.file_name not in images and not (inventory.root / row.file_name).is_file():
            raise DataError(
                f"{row.origin} names {row.file_name!r}, which is not in {inventory.root}; "
                "add the file or remove the row"
            )
        if row.labels is None:
            builder.skipped.drop("no label", row.file_name)
            continue
        declared = set(row.labels) <= set(space.labels) and (space.multi or len(row.labels) == 1)
        if drop and not declared:
            builder.skipped.drop("label not declared", row.file_name)
            continue
        before = said.setdefault((row.file_name, row.box, row.subject, str(row.attributes)), row.labels)
        if before is not row.labels:
            if set(before) != set(row.labels):
                raise LabelError(
                    f"{row.origin} names {row.file_name} again with other labels; write all labels of a record in one "
                    "row under 'labels', or give each person a box or a subject"
                )
            builder.skipped.drop("the same record again", row.file_name)
            continue
        seen[row.file_name] = count = seen.get(row.file_name, 0) + 1
        record = Record(
            key=row.file_name if count == 1 else f"{row.file_name}#{count}",
            labels=_ids(row, row.labels, space),
            subject=row.subject,
            attributes=row.attributes,
            box=row.box,
        )
        builder.add(record, ImageFile(inventory.root / row.file_name))
    return builder


def _ids(row: Row, labels: Sequence[str], space: LabelSpace) -> tuple[int, ...]:
    if not space.multi and len(labels) != 1:
        raise LabelError(f"{row.origin}: the label space {space.name!r} takes exactly one label, not {len(labels)}")
    try:
        return tuple(sorted(space.index(word) for word in labels))
    except LabelError as error:
        raise LabelError(f"{row.origin}: {error}") from None


def load_imagefolder(
    path: Path, space: LabelSpace | None = None, *, by_client: bool = False, drop_undeclared: bool = False
) -> dict[str, FileCorpus]:
    """Read an image folder, refusing any irregularity; no pixel is read.

    The splits are ``train``, ``val`` and ``test`` as far as they exist, or ``all``. Files that are no records are
    counted in the first split's ``skipped``. ``space`` is by default the sorted labels of all splits. For
    ``by_client`` and ``drop_undeclared`` see `ReadOptions`. Raises `DataError` where there are no images, or a file,
    link or row is missing, malformed or contradictory; `LabelError` where a label is malformed, ambiguous, or not in
    ``space``.
    """
    inventory = take_inventory(path)
    parts = read_layout(inventory, by_client)
    empty = [part.name for part in parts if not part.rows]
    if not parts or empty:
        where = f"the split {empty[0]} of {path}" if parts and empty[0] != "all" else path
        inventory.count(())
        left = ", ".join(f"{count} x {why}" for why, count in inventory.skipped.dropped.items())
        raise DataError(
            f"{where} holds no images{f' (skipped: {left})' if left else ''}; put them into one "
            "folder per label, or add a metadata.jsonl"
        )
    if len({row.several for part in parts for row in part.rows}) > 1:
        raise DataError(f"{path} uses 'label' in some rows and 'labels' in others; use one")
    _check_subjects(parts)
    name = path.resolve().name
    space = space or _derive(parts, name)
    if not space.labels:
        raise LabelError(f"{path} holds no label at all; label at least one record")
    images = frozenset(inventory.images)
    built = {part.name: _build(part, inventory, images, space, name, drop_undeclared) for part in parts}
    inventory.count({row.file_name for part in parts for row in part.rows})
    next(iter(built.values())).skipped.merge(inventory.skipped)
    return {name: one.corpus("label its images") for name, one in built.items()}


def _load(path: Path, options: ReadOptions) -> dict[str, FileCorpus]:
    published = PUBLISHED_SPACES.get(options.task)
    return load_imagefolder(
        path, published or options.space, by_client=options.by_client, drop_undeclared=options.drop_undeclared
    )


FORMAT = CorpusFormat(
    "imagefolder",
    "anything else: metadata.jsonl or metadata.csv next to the images, or one folder per label",
    tasks=lambda root, named: (),
    load=_load,
    own_labels=True,
)
"""Read where no published corpus is found."""
