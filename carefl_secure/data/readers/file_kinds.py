"""The kind of each file below a data folder, by name alone; printed in ``docs/guide/images.md``."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath

from PIL import Image

from carefl_secure.data.readers.images import VIDEO_SUFFIXES

COMMON = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Image suffixes that every Pillow opens; :func:`image_suffixes` has all."""

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
"""Files that describe the images of their own folder and of the folders below it."""

TOOL_FOLDERS = (
    *("@eadir", "__macosx", "__pycache__", "#recycle", "$recycle.bin", "lost+found"),
    "system volume information",
)
"""Folders that tools make, in lower case; so is every folder whose name starts with a dot."""

TOOL_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
"""Files that tools make, in lower case; so is every file whose name starts with a dot."""

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".xml", ".yaml", ".yml")
"""Text that may hold labels: refused where it names images and no metadata file is there."""

ARCHIVES = {
    ".zip": "unzip '{path}' -d '{folder}'",
    **dict.fromkeys((".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"), "tar -xf '{path}' -C '{folder}'"),
    ".tar.zst": "tar --zstd -xf '{path}' -C '{folder}'",
    ".gz": "gunzip '{path}'",
    ".bz2": "bunzip2 '{path}'",
    ".xz": "unxz '{path}'",
    ".zst": "unzstd --rm '{path}'",
    ".7z": "7z x '{path}' -o'{folder}'",
    ".rar": "unrar x '{path}' '{folder}/'",
}
"""Archives, refused with the command that unpacks them."""

CONTAINERS = (
    *(".parquet", ".feather", ".arrow", ".xlsx", ".xls", ".ods", ".npy", ".npz", ".h5", ".hdf5"),
    *(".hdf", ".tfrecord", ".tfrecords", ".lmdb", ".mdb", ".mat", ".pkl", ".pickle", ".pt", ".pth"),
    *(".rec", ".db", ".sqlite", ".sqlite3"),
)
"""Files that may hold images or labels inside; refused, to be written as single files."""

NOT_READ = (
    *(".svg", ".svgz", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2", ".pef"),
    *(".bufr", ".grib", ".eps", ".ps", ".wmf", ".emf", ".psb", ".xcf", ".exr", ".hdr"),
)
"""Vector graphics, camera raw and other images that Pillow does not decode; refused."""

PLUGINS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif"),
    **dict.fromkeys((".avif", ".avifs"), "pillow-avif-plugin"),
    ".jxl": "pillow-jxl-plugin",
}
"""Image suffixes that need a further package, and its name on PyPI."""


_HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes that Pillow opens here, plugins included, without the refused ones."""
    for module in ("pillow_heif", "pillow_avif", "pillow_jxl"):
        with suppress(ImportError):
            plugin = __import__(module)
            if hasattr(plugin, "register_heif_opener"):
                plugin.register_heif_opener()
    Image.init()
    known = {end for end, name in Image.registered_extensions().items() if name in Image.OPEN}
    return frozenset(known - {*NOT_READ, *CONTAINERS, *VIDEO_SUFFIXES})


def made_by_a_tool(name: str, folder: bool) -> bool:
    """Tell whether a file or folder was made by a tool and not by who made the corpus."""
    return name.startswith(".") or name.lower() in (TOOL_FOLDERS if folder else TOOL_FILES)


def image_head(path: Path) -> bool:
    """Tell whether a file begins as a PNG, JPEG, GIF, TIFF or WebP image does."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(_HEADS) or (head[:4], head[8:]) == (b"RIFF", b"WEBP")


def suffix_of(name: str) -> str:
    """Return the suffix in lower case; both parts of ``.tar.gz`` and the like."""
    ends = [end.lower() for end in PurePosixPath(name).suffixes[-2:]]
    return "".join(ends) if "".join(ends) in ARCHIVES else (ends or [""])[-1]


def how_to_rename(name: str) -> str:
    """Return what to do with metadata under a name that is not read."""
    lower = PurePosixPath(name).name.lower()
    if lower in METADATA_NAMES:
        return f"is not read under this name; rename it to {lower}"
    if suffix_of(lower) == ".tsv":
        return "is not read under this name; rename it to metadata.csv"
    return "is not read; write it as metadata.jsonl, one JSON object per line, or as metadata.csv"


def how_to_convert(path: str, folder: str) -> str | None:
    """Return what to do with a file that is refused for its kind, or ``None`` where it is not."""
    end = suffix_of(path)
    if end in ARCHIVES:
        command = ARCHIVES[end].format(path=path, folder=folder)
        return f"is an archive; unpack it with: {command}, and move it out of the folder"
    if end in VIDEO_SUFFIXES:
        return f"is a video; extract its frames with: ffmpeg -i '{path}' '{folder}/%06d.png'"
    if end in PLUGINS and end not in image_suffixes():
        return f"needs a package that is not installed; run: pip install {PLUGINS[end]}"
    if end in (".parquet", ".feather", ".xlsx", ".xls", ".ods"):
        kind = {".parquet": "parquet", ".feather": "feather"}.get(end, "excel")
        return (
            "is a table that is not read; where it describes the images, write it as text with: "
            f"python -c \"import pandas; pandas.read_{kind}('{path}').to_json("
            f"'{folder}/metadata.jsonl', orient='records', lines=True)\", and move it out of the "
            "folder; images inside it must become single files"
        )
    if end in CONTAINERS:
        return "may hold images or labels, which must be single files; convert it or move it away"
    if end in NOT_READ:
        return f"is an image that Pillow does not decode; convert it with: magick '{path}' OUT.png"
    return None
