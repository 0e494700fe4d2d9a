"""Layouts of image folders, and what the ``datasets`` library (5.2.0) makes of them.

``python tests/data/corpora/datasets_rules.py`` records the answers anew, where that library is
installed; the test that compares ours with them needs no more than the record.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image

RECORD = Path(__file__).with_name("datasets_rules.json")
ROWS = [("0.png", "happy"), ("1.png", "sad"), ("2.png", "happy")]


def jsonl(prefix: str = "") -> str:
    """Return a metadata file of three rows."""
    rows = [{"file_name": prefix + name, "label": label} for name, label in ROWS]
    return "\n".join(json.dumps(row) for row in rows)


def csv(prefix: str = "") -> str:
    """Return the same as CSV."""
    return "\n".join(["file_name,label", *(f"{prefix}{name},{label}" for name, label in ROWS)])


def layouts() -> dict[str, dict[str, str | None]]:
    """Return files by layout: text, or None for an image."""
    images: dict[str, str | None] = {name: None for name, _ in ROWS}
    classes: dict[str, str | None] = {f"{label}/{name}": None for name, label in ROWS}

    def below(folder: str, files: dict[str, str | None]) -> dict[str, str | None]:
        return {f"{folder}/{name}": text for name, text in files.items()}

    described = {**images, "metadata.jsonl": jsonl()}
    found = {
        "classes": classes,
        "metadata at the root": described,
        "csv at the root": {**images, "metadata.csv": csv()},
        "metadata below": below("images", described),
        "root metadata of a folder": {**below("images", images), "metadata.jsonl": jsonl("images/")},
        "hidden folder": {**classes, ".git/x.png": None, ".cache/y.png": None},
        "hidden file": {**classes, "happy/._0.png": None},
        "two batches": {**below("b0", described), **below("b1", described)},
    }
    for one in ("train", "Train", "training", "val", "valid", "validation", "dev", "test", "eval"):
        other = "test" if one.lower().startswith("train") else "train"
        for form, files in (("classes", classes), ("metadata", described)):
            found[f"{form} in {one} and {other}"] = {**below(one, files), **below(other, files)}
    return found


def build(root: Path, files: dict[str, str | None]) -> Path:
    """Write one layout."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_text(text, encoding="utf-8")
    return root


def main() -> None:
    """Record what ``datasets`` makes of every layout."""
    from datasets import ClassLabel, load_dataset  # no dependency of the package

    record = {}
    for name, files in layouts().items():
        with tempfile.TemporaryDirectory() as folder:
            root = build(Path(folder) / "data", files)
            try:
                loaded = load_dataset("imagefolder", data_dir=str(root), cache_dir=folder + "/c")
            except Exception as error:
                record[name] = {"error": type(error).__name__}
                continue
            answer = {}
            for split, rows in loaded.items():
                kind = rows.features.get("label")
                words = [kind.int2str(v) if isinstance(kind, ClassLabel) else v for v in rows["label"]]
                answer[str(split)] = dict(sorted(Counter(words).items()))
            record[name] = answer
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
