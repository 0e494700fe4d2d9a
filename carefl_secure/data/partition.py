"""How clients share the training records out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from carefl_secure.data.records import Corpus, image_of, targets
from carefl_secure.data.splits import groups as joined
from carefl_secure.data.splits import subject_groups
from carefl_secure.errors import ConfigError, DataError

Indices = npt.NDArray[np.int64]
Kind = Literal["iid", "dirichlet", "column", "quantity", "folder"]
_DRAWS = 100


def partition(
    corpus: Corpus | npt.NDArray[Any],
    clients: int,
    kind: Kind = "iid",
    *,
    alpha: float = 0.5,
    column: str | None = None,
    seed: int = 0,
    together: bool = False,
) -> list[Indices]:
    """Give every record to exactly one client; return the sorted record indices of each.

    `ConfigError` for settings that make no sense, leave a client without records, or separate the records of one
    person that must stay together; `DataError` for a record that lacks the column.

    Parameters
    ----------
    corpus : Corpus or ndarray
        The records; or their 0/1 label matrix ``[N, K]``, which ``column`` cannot use.
    clients : int
        Number of clients; each gets at least one record.
    kind : str
        ``iid`` shuffles and cuts into equal parts (sizes differ by at most one). ``dirichlet`` draws, for each label,
        the clients' shares from ``Dirichlet(alpha)`` (Hsu et al., arXiv 1909.06335); a record goes by its *rarest*
        label in the corpus (ties: the lower id), and records without a label form a label of their own. ``column``
        gives all records with one value of an attribute, or of ``subject``, to one client; values go, the largest
        first, to the client with the fewest records. ``folder`` gives each client the records of one folder.
        ``quantity`` draws the shares of all records from one ``Dirichlet(alpha)``: sizes differ and labels do not.
    alpha : float
        Concentration; small values give each client few labels, or some clients most records.
    together : bool
        Keep all records of one ``subject`` at one client, as ``privacy.unit: person`` needs: persons are distributed
        in place of records, by the labels that any of their records has. Records of one image (see `image_of`) stay
        together unless a column says otherwise.
    """
    if kind == "folder":
        kind, column = "column", "folder"
        named = set() if isinstance(corpus, np.ndarray) else {r.attributes.get("folder", "") for r in corpus.records}
        if len(named) != clients:
            raise ConfigError(
                f"data.partition=folder finds {len(named)} folders of clients "
                f"({', '.join(sorted(named)[:5])}); set federation.clients={len(named)}"
            )
    if together or (kind != "column" and _share_images(corpus)):
        return _of_groups(corpus, clients, kind, alpha, column, seed, together)
    labels = np.asarray(corpus) if isinstance(corpus, np.ndarray) else targets(corpus)
    if labels.ndim != 2:
        raise ConfigError(f"a label matrix has two dimensions, not {labels.ndim}")
    if not 1 <= clients <= len(labels):
        raise ConfigError(
            f"{len(labels)} records cannot be shared out to {clients} clients; add records or lower federation.clients"
        )
    rng = np.random.default_rng(seed)
    if kind == "iid":
        parts = np.array_split(rng.permutation(len(labels)), clients)
    elif kind == "dirichlet":
        classes = _rarest(labels)
        places = [np.flatnonzero(classes == label) for label in np.unique(classes)]
        parts = _by_draw(lambda: map(rng.permutation, places), len(labels), clients, alpha, rng)
    elif kind == "quantity":
        order = rng.permutation(len(labels))
        parts = _by_draw(lambda: (order,), len(labels), clients, alpha, rng)
    elif kind == "column":
        if isinstance(corpus, np.ndarray) or column is None:
            raise ConfigError("data.partition=column needs a corpus and data.column")
        parts = _by_column(corpus, clients, column, rng)
    else:
        raise ConfigError(f"unknown partition {kind!r}; choose iid, dirichlet, column or quantity")
    return [np.sort(part).astype(np.int64) for part in parts]


def _rarest(labels: npt.NDArray[Any]) -> Indices:
    """Return each record's rarest label, and ``K`` for records without one."""
    present = labels > 0
    counts = present.sum(0)
    cost = np.where(present, counts, len(labels) + 1)
    padded = np.concatenate([cost, np.full((len(labels), 1), len(labels))], 1)
    return np.asarray(padded.argmin(1), np.int64)


def _share_images(corpus: Corpus | npt.NDArray[Any]) -> bool:
    if isinstance(corpus, np.ndarray):
        return False
    return len({image_of(record.key) for record in corpus.records}) < len(corpus.records)


def _groups(corpus: Corpus, together: bool) -> list[Indices]:
    """Return the records that stay together: a person's, an image's, or both joined."""
    if not _share_images(corpus):
        return subject_groups(corpus.records)
    if together:
        return [np.array(group, np.int64) for group in joined(corpus)]
    members: dict[str, list[int]] = {}
    for index, record in enumerate(corpus.records):
        members.setdefault(image_of(record.key), []).append(index)
    return [np.array(group, np.int64) for group in members.values()]


def _of_groups(
    corpus: Corpus | npt.NDArray[Any],
    clients: int,
    kind: Kind,
    alpha: float,
    column: str | None,
    seed: int,
    together: bool,
) -> list[Indices]:
    """Share persons or images out; a column is followed as it is and must not part a person."""
    if isinstance(corpus, np.ndarray):
        raise ConfigError("keeping persons together needs a corpus, not a label matrix")
    if kind == "column":
        parts = partition(corpus, clients, kind, column=column, seed=seed)
        owner = np.empty(len(corpus.records), np.int64)
        for client, part in enumerate(parts):
            owner[part] = client
        if any(len(np.unique(owner[group])) > 1 for group in subject_groups(corpus.records)):
            raise ConfigError(
                f"data.column={column} gives records of one person to several clients, and privacy.unit=person "
                "protects a person at one client only; set data.column=subject or another data.partition"
            )
        return parts
    groups = _groups(corpus, together)
    if clients > len(groups):
        raise ConfigError(
            f"{len(groups)} persons or images cannot be shared out to {clients} clients; "
            "add some or lower federation.clients"
        )
    labels = targets(corpus)
    shown = np.stack([labels[group].max(0) for group in groups])
    return [
        np.sort(np.concatenate([groups[person] for person in part]))
        for part in partition(shown, clients, kind, alpha=alpha, seed=seed)
    ]


def _by_draw(
    parts: Callable[[], Iterable[Indices]], records: int, clients: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    """Cut every part of the records by a draw of the clients' shares, until each client has a record."""
    if not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"data.alpha must be a positive number, not {alpha}")
    for _ in range(_DRAWS):
        owner = np.empty(records, np.int64)
        for members in parts():
            shares = rng.dirichlet(np.full(clients, alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for client, part in enumerate(np.split(members, cuts)):
                owner[part] = client
        if len(np.unique(owner)) == clients:
            return [np.flatnonzero(owner == client) for client in range(clients)]
    raise ConfigError(
        f"data.alpha={alpha:g} left a client without records in each of {_DRAWS} draws; "
        "raise data.alpha, lower federation.clients, or add records"
    )


def _by_column(corpus: Corpus, clients: int, column: str, rng: np.random.Generator) -> list[Indices]:
    members: dict[str, list[int]] = {}
    for index, record in enumerate(corpus.records):
        value = record.subject if column == "subject" else record.attributes.get(column)
        if value is None:
            known = sorted({name for r in corpus.records for name in r.attributes})
            raise DataError(
                f"the record {record.key!r} has no {column!r}; fill it in, or set data.column to "
                f"one of: {', '.join([*known, 'subject'])}"
            )
        members.setdefault(value, []).append(index)
    if len(members) < clients:
        raise ConfigError(
            f"the column {column!r} has {len(members)} values, too few for {clients} clients; "
            "lower federation.clients or choose another data.column"
        )
    values = sorted(members)
    shuffled = [values[place] for place in rng.permutation(len(values))]
    parts: list[list[int]] = [[] for _ in range(clients)]
    for value in sorted(shuffled, key=lambda v: -len(members[v])):
        min(parts, key=len).extend(members[value])
    return [np.array(part, np.int64) for part in parts]
