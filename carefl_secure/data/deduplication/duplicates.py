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

_EXAMPLES = 3


@dataclass(frozen=True)
class Shared:
    """What two parts have in common.

    ``exact`` counts the images of the second whose pixels the first has too, ``files`` those of them that are
    byte-for-byte the same file, ``near`` further images of the second that are nearly one of the first, ``subjects``
    the subjects (persons, videos) in both. ``examples`` are a few pairs, as ``first = second`` or ``first ~ second``.
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
        marks = [mark for part in prints.values() for mark in part]
        unique = {mark.pixels: mark for mark in marks if mark.pixels is not None and mark.hash is not None}
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
