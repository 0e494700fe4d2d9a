"""Equal and nearly equal images: between splits, between clients, and within one of them.

An image in two splits inflates a score. An image at two clients has less protection than accounted
for: each client adds its own contribution for it. What is done about them is ``data.deduplicate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from carefl_secure.data.checks.examine import Examined, restrict
from carefl_secure.data.deduplication.image_hashes import ImageHash, near_pairs
from carefl_secure.data.records import Corpus, Record
from carefl_secure.errors import DataError

_EXAMPLES = 3


@dataclass(frozen=True)
class Shared:
    """What two parts have in common."""

    first: str
    second: str
    exact: int  # images of the second whose pixels the first has too
    files: int  # those of them that are byte-for-byte the same file
    near: int  # further images of the second that are nearly one of the first
    subjects: int  # persons or videos in both
    examples: tuple[str, ...]  # a few pairs, as "first = second" or "first ~ second"


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
    """Compare every two parts by their hashes: one `Shared` per pair, clean ones too; ``alike`` may span more."""
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


Policy = Literal["refuse", "drop", "keep"]


@dataclass(frozen=True)
class Deduplicated:
    """The corpora after the policy, and what it found."""

    found: Examined
    repeated: int  # images that repeat another of the same split
    shared: int  # images of a later split that an earlier one holds
    policy: Policy
    contradictions: int = 0  # images that equal an earlier one but have other labels

    def __str__(self) -> str:
        if not self.repeated + self.shared:
            return "no exact duplicates"
        done = "left out" if self.policy == "drop" else "kept"
        text = f"exact duplicates {done}: {self.repeated} within a split, {self.shared} across splits"
        against = f"; contradictions: {self.contradictions} images equal another but have other labels"
        return text + (against if self.contradictions else "")


def deduplicate(found: Examined, policy: Policy) -> Deduplicated:
    """Look for equal pixels within and across splits, and apply the policy.

    ``refuse`` raises a `DataError` for an image in two splits, and keeps one that occurs twice in one. ``drop`` keeps
    only the first copy, ``keep`` all. A split must not become empty.
    """
    owner: dict[bytes, str] = {}
    repeated = shared = 0
    example = ""
    corpora, hashes = dict(found.corpora), dict(found.hashes)
    for name, marks in found.hashes.items():
        kept: list[int] = []
        for mark in marks:
            before = None if mark.pixels is None else owner.setdefault(mark.pixels, "")
            if mark.pixels is not None and not before:
                owner[mark.pixels] = name
                kept.extend(mark.records)
            elif before == name:
                repeated += 1
            else:
                shared += 1
                example = example or f"{mark.image} of {name} stands in {before} too"
        if policy == "drop":
            if not kept:
                raise DataError(
                    f"nothing remains of {name} once duplicates are left out; set "
                    "data.deduplicate=keep, and say so with every score"
                )
            corpora[name], hashes[name] = restrict(found.corpora[name], marks, sorted(kept))
    if policy == "refuse" and shared:
        raise DataError(
            f"{shared} images stand in two splits (such as {example}), which makes every score too good; set "
            "data.deduplicate=drop to leave them out of the later split, or =keep to go on with them"
        )
    return Deduplicated(Examined(corpora, hashes), repeated, shared, policy, len(contradictions(found)))


def contradictions(found: Examined) -> list[str]:
    """Return the images that are equal to an earlier one but have other labels, as ``first = second``."""
    known: dict[object, tuple[str, Record]] = {}
    out = []
    for name, marks in found.hashes.items():
        for mark, index in ((one, index) for one in marks if one.pixels for index in one.records):
            record = found.corpora[name].records[index]
            image, first = known.setdefault((mark.pixels, record.box), (mark.image, record))
            other = image != mark.image or first.subject == record.subject  # and not two persons in one image
            if other and set(first.labels) != set(record.labels):
                out.append(f"{image} = {mark.image}")
    return out


def held_twice(equal: Sequence[Sequence[int]], shares: Sequence[Sequence[int]]) -> int:
    """Return how many groups of records are held by more than one client."""
    client = {index: k for k, share in enumerate(shares) for index in share}
    return sum(len({client[index] for index in same if index in client}) > 1 for same in equal)


def near_records(hashes: Sequence[ImageHash]) -> list[list[int]]:
    """Return the records of every pair of images that are nearly equal, and not equal."""
    owner = {mark.pixels: mark for mark in hashes if mark.hash is not None}
    marks = [mark for mark in hashes if owner.get(mark.pixels) is mark]
    pairs = near_pairs(marks).tolist() if marks else []
    return [[*marks[a].records, *marks[b].records] for a, b in pairs]


def exposed(private: Sequence[ImageHash], shown: Sequence[ImageHash]) -> int:
    """Return how many private images are equal, or nearly, to one that is read without noise."""
    alike = Near({"private": private, "shown": shown})
    pixels = {mark.pixels for mark in shown} - {None}
    return sum(mark.pixels in pixels or bool(alike.neighbours(mark) & pixels) for mark in private)


def equal_records(hashes: Sequence[ImageHash]) -> list[list[int]]:
    """Return the records of images that are equal in every pixel, where there are several."""
    same: dict[bytes, list[int]] = {}
    for mark in hashes:
        if mark.pixels is not None:
            same.setdefault(mark.pixels, []).extend(mark.records)
    return [records for records in same.values() if len(records) > 1]
