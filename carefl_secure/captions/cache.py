"""The folder of captions: by the bytes of the picture, below a folder that names who made them.

    CACHE/CAPTIONER/captioner.json      model, revision, prompt, ...: see :class:`CaptionCache`
    CACHE/CAPTIONER/ab/abcdef....json   {"caption": "..."}

Captions are personal data like the images: folders are open to their owner only, and nothing here is ever sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from carefl_secure.errors import ConfigError, DataError
from carefl_secure.strict_json import load_json

Facts = Mapping[str, str | int | float | None]  # all that decides a caption besides the picture
_RECORD = "captioner.json"
_PRIVATE = 0o700


def picture_key(image: Image.Image) -> str:
    """Return SHA-256, as hexadecimal digits, over size and bytes of the RGB picture."""
    rgb = image.convert("RGB")
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}|".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


class CaptionCache:
    """The captions of one captioner below ``root``; safe for several processes at once.

    ``facts`` are model, revision, prompt, compute type, longest caption, quantisation and view: the SHA-256 of their
    canonical JSON names the folder, so captions of two captioners never mix.
    """

    def __init__(self, root: Path, facts: Facts) -> None:
        text = json.dumps(dict(facts), sort_keys=True, allow_nan=False)
        self.facts: dict[str, Any] = json.loads(text)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()
        try:
            root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            self.folder.mkdir(mode=_PRIVATE, exist_ok=True)
            self.folder.chmod(_PRIVATE)
            if not (self.folder / _RECORD).exists():
                _write(self.folder / _RECORD, json.dumps(self.facts, sort_keys=True, indent=2))
                # Nobody commits captions by accident.
                _write(self.folder / ".gitignore", "*\n")
        except OSError as error:
            raise DataError(f"cannot keep captions in {root}: {error}. Choose a folder you may write to") from error

    @classmethod
    def find(cls, path: Path) -> CaptionCache:
        """Open one captioner's folder, or a root that holds one: `DataError` for none, `ConfigError` for several."""
        if (path / _RECORD).is_file():
            return cls(path.parent, _facts(path))
        found = sorted(p.parent for p in path.glob(f"*/{_RECORD}")) if path.is_dir() else []
        if not found:
            raise DataError(f"there are no captions in {path}; make them with 'carefl-secure caption'")
        if len(found) > 1:
            known = [(one, _facts(one)) for one in found]
            names = "; ".join(
                f"{one.name}: {facts.get('model')}, {facts.get('view')}, {str(facts.get('prompt'))[:40]!r}"
                for one, facts in known
            )
            raise ConfigError(f"{path} holds captions of {len(found)} captioners; name the folder of one. {names}")
        return cls(path, _facts(found[0]))

    def get(self, key: str) -> str | None:
        """Return a caption, or None where there is none or it cannot be read."""
        try:
            caption = load_json(self._path(key).read_text(encoding="utf-8"))["caption"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # damaged from outside: it is made anew like a missing one
        return caption if isinstance(caption, str) else None

    def put(self, key: str, caption: str) -> None:
        """Keep a caption; a reader sees the old or the new one, never a part."""
        path = self._path(key)
        try:
            path.parent.mkdir(mode=_PRIVATE, exist_ok=True)
            _write(path, json.dumps({"caption": caption}))
        except OSError as error:
            raise DataError(f"cannot keep a caption in {path.parent}: {error}") from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / _RECORD
    try:
        facts = load_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; make the captions anew") from error
    text = json.dumps(facts, sort_keys=True)
    if not isinstance(facts, dict) or hashlib.sha256(text.encode()).hexdigest() != folder.name:
        raise DataError(
            f"{path} does not fit the name of its folder, so it is not known who made the captions; make them again"
        )
    return facts


def _write(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(text)
    os.replace(temporary, path)
