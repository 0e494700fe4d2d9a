"""The folder of vision features, without torch: where it is, what it holds, and how it is erased.

    FOLDER/ENCODER/encoder.json          what decides features besides the image
    FOLDER/ENCODER/SHA256.safetensors    features [n, tokens, width], keys uint8 [n, 32]

A shard is named by the SHA-256 of its content. Features are as private as the images: folders are
open to their owner only (0700, files 0600), and nothing here is ever sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carefl_secure.data.synthetic.corpus import default_cache
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.strict_json import load_json

RECORD = "encoder.json"
HEADER = 512  # bytes of a shard before its features: length and JSON, filled up with spaces
KEY = 32

_PRIVATE = 0o700


def cache_folder(setting: Path | str | None) -> Path | None:
    """Return the folder that ``model.feature_cache`` means: a path, None, or ``auto`` for the user's cache."""
    if setting is None:
        return None
    return default_cache() / "features" if str(setting) == "auto" else Path(setting)


def encoder_folder(root: Path, facts: Mapping[str, Any]) -> Path:
    """Make and return the folder of one encoder; ``facts`` but ``base``, the model's name, decide its features."""
    deciding = {name: fact for name, fact in facts.items() if name != "base"}
    text = json.dumps(deciding, sort_keys=True)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:32]
    try:
        root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        folder.mkdir(mode=_PRIVATE, exist_ok=True)
        folder.chmod(_PRIVATE)
        record = folder / RECORD
        if not record.exists():
            part = record.with_suffix(f".{os.getpid()}.part")
            part.touch(0o600)
            part.write_text(json.dumps(dict(facts), sort_keys=True, indent=1))
            os.replace(part, record)
    except OSError as error:
        raise DataError(
            f"cannot keep vision features in {root}: {error.strerror}; set model.feature_cache to a folder you may "
            "write to, or to null to keep them in memory"
        ) from error
    return folder


def header_of(path: Path) -> dict[str, Any] | None:
    """Return the header of a shard; None where it cannot be one."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER)
        found = load_json(head[8:])
        rows = found["keys"]["shape"][0]
        size = HEADER + found["keys"]["data_offsets"][1]
        whole = int.from_bytes(head[:8], "little") == HEADER - 8 and path.stat().st_size == size
        return found if whole and rows == found["features"]["shape"][0] else None
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


@dataclass(frozen=True)
class Encoder:
    """What the folder holds of one encoder: features of ``images`` images, in ``size`` bytes."""

    name: str
    base: str
    dtype: str
    images: int
    size: int


def list_encoders(root: Path) -> list[Encoder]:
    """Return what a folder of features holds, the largest encoder first."""
    found = []
    for record in sorted(root.glob(f"*/{RECORD}")) if root.is_dir() else []:
        files = sorted(record.parent.glob("*.safetensors"))
        headers = [header for header in map(header_of, files) if header is not None]
        try:
            facts = load_json(record.read_text())
        except (OSError, ValueError):
            facts = {}
        size = sum(file.stat().st_size for file in record.parent.iterdir() if file.is_file())
        images = sum(header["keys"]["shape"][0] for header in headers)
        found.append(
            Encoder(record.parent.name, str(facts.get("base", "?")), str(facts.get("dtype", "?")), images, size)
        )
    return sorted(found, key=lambda one: -one.size)


def delete_encoders(root: Path, names: list[str]) -> int:
    """Erase the features of some encoders, by name or its beginning; return the bytes freed.

    `ConfigError` for a name that fits none or several; nothing is then erased. What an open run reads stays readable.
    """
    known, chosen = list_encoders(root), []
    for name in names:
        fits = [one for one in known if one.name.startswith(name)]
        if len(fits) != 1 or not name:
            raise ConfigError(f"{name!r} names {len(fits)} encoders in {root}; see 'carefl-secure cache list'")
        chosen += fits
    for one in chosen:
        try:
            shutil.rmtree(root / one.name)
        except FileNotFoundError:
            continue  # named twice, or erased by another process
        except OSError as error:
            raise DataError(f"cannot erase {root / one.name}: {error.strerror}; erase it by hand") from error
    return sum(one.size for one in set(chosen))
