"""Equal and nearly equal images: between splits, between clients, and within one of them.

An image in two splits inflates a score. An image at two clients has less protection than accounted
for: each client adds its own contribution for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from carefl_secure.data.deduplication.image_hashes import ImageHash, near_pairs
from carefl_secure.data.records import Corpus
from carefl_secure.data.skipped import Skipped
from carefl_secure.data.splits import Subset
from carefl_secure.errors import DataError

_EXAMPLES = 3


@dataclass(frozen=True)
class Shared:
    """What two parts have in common.

    ``exact`` counts the images of the second whose pixels the first has too, ``files`` those of
    them that are byte-for-byte the same file, ``near`` further images of the second that are nearly
    one of the first, ``subjects`` the subjects (persons, videos) in both. ``examples`` are a few
    pairs, as ``first = second`` or ``first ~ second``.
    """

    first: str
    second: str
    exact: int
    files: int
    near: int
    subjects: int
    examples: tuple[str, ...]


class Near:
    """Which images are near which, by their pixels' hash; being near is not transitive."""

    def __init__(self, prints: Mapping[str, Sequence[ImageHash]]) -> None:
        unique = {
            mark.pixels: mark
            for part in prints.values()
            for mark in part
            if mark.pixels is not None and mark.hash is not None
        }
        pixels = list(unique)
        self.of: dict[bytes, set[bytes]] = {}
        for a, b in near_pairs(list(unique.values())).tolist():
            self.of.setdefault(pixels[a], set()).add(pixels[b])
            self.of.setdefault(pixels[b], set()).add(pixels[a])

    def neighbours(self, mark: ImageHash) -> set[bytes]:
        """Return the pixels of the images near one, in no order."""
        return set() if mark.pixels is None else self.of.get(mark.pixels, set())


def find_shared(
    parts: Mapping[str, Corpus], prints: Mapping[str, Sequence[ImageHash]], alike: Near | None = None
) -> list[Shared]:
    """Compare every two parts (splits or clients); return one `Shared` per pair, clean ones too.

    ``prints`` are the hashes of each part, from :func:`.image_hashes.hash_images`; ``alike`` the
    near duplicates of a larger set, where known.
    """
    alike = alike or Near(prints)
    found = []
    for first, second in combinations(parts, 2):
        pixels = {mark.pixels: mark for mark in prints[first] if mark.pixels is not None}
        files = {mark.file for mark in prints[first] if mark.file is not None}
        exact = same = near = 0
        examples = []
        for mark in prints[second]:
            if mark.pixels is not None and mark.pixels in pixels:
                exact += 1
                same += mark.file is not None and mark.file in files
                examples.append(f"{pixels[mark.pixels].image} = {mark.image}")
            elif close := alike.neighbours(mark) & pixels.keys():
                near += 1
                other = min(pixels[one].image for one in close)
                examples.append(f"{other} ~ {mark.image}")
        examples.sort(key=lambda text: " ~ " in text)  # exact ones first
        subjects = {r.subject for r in parts[first].records} & {r.subject for r in parts[second].records}
        found.append(Shared(first, second, exact, same, near, len(subjects - {None}), tuple(examples[:_EXAMPLES])))
    return found


def within(prints: Sequence[ImageHash], alike: Near | None = None) -> tuple[int, int]:
    """Return how many images repeat an earlier one of the same part, exactly and nearly."""
    alike = alike or Near({"": prints})
    seen = set[bytes]()
    exact = near = 0
    for mark in prints:
        if mark.pixels is None:
            continue
        if mark.pixels in seen:
            exact += 1
        elif alike.neighbours(mark) & seen:
            near += 1
        seen.add(mark.pixels)
    return exact, near


def drop_shared(
    parts: Mapping[str, Corpus], prints: Mapping[str, Sequence[ImageHash]], *, near: bool = True
) -> tuple[dict[str, Subset], Skipped]:
    """Leave out of every part what an earlier part holds, and all but one of a repetition.

    ``parts`` are in order of priority: train, val, test. The parts that remain share no image and
    no subject, and with ``near`` no nearly equal image. Inside one part only equal pixels are
    repetitions. Unreadable images are left out too. `Skipped` counts them by part and reason. A
    part that would become empty raises `DataError`.
    """
    close, skipped, out = Near(prints), Skipped(), {}
    held: dict[object, str] = {}  # what each image kept so far is known by, and its part
    for name, corpus in parts.items():
        kept: list[int] = []
        mine: set[object] = set()
        for mark in prints[name]:
            subjects = {corpus.records[index].subject for index in mark.records} - {None}
            known: list[object] = [("subject", subject) for subject in sorted(map(str, subjects))]
            known.append(mark.pixels)
            known_or_near = [*known, *(close.neighbours(mark) if near else ())]
            owners = {held[one] for one in known_or_near if one in held}
            taken = next((part for part in parts if part in owners), None)
            if mark.pixels is None:
                reason = f"{name}: image cannot be read"
            elif taken is not None:
                reason = f"{name}: shared with {taken}"
            elif mark.pixels in mine:
                reason = f"{name}: repeated"
            else:
                mine.update(known)
                kept.extend(mark.records)
                continue
            for index in mark.records:
                skipped.drop(reason, corpus.records[index].key)
        if not kept:
            raise DataError(
                f"nothing remains of {name} once what it shares with earlier parts is left out; "
                "use the original split, and say so with every score"
            )
        held |= dict.fromkeys(mine, name)
        out[name] = Subset(corpus, tuple(sorted(kept)))
    return out, skipped
