"""Every file is an image, metadata, a table, skipped with its reason, or refused by name."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carefl_secure.data.readers.file_kinds import ARCHIVES, CONTAINERS, NOT_READ, PLUGINS
from carefl_secure.data.readers.inventory import take_inventory
from carefl_secure.errors import DataError

NAMES = ["a.png", "b.JPG", "c.jfif", "README.md", "notes.txt", ".DS_Store", "._a.png", "Thumbs.db"]
NAMES += ["noname", "metadata.csv", "x.pdf", "desktop.ini", "LICENSE"]
FOLDERS = ["", "happy/", "train/happy/", ".git/", "happy/@eaDir/", "__MACOSX/happy/"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.sets(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES)), max_size=20))
def test_no_file_is_lost(tmp_path_factory: pytest.TempPathFactory, files: set[tuple[str, str]]) -> None:
    root = tmp_path_factory.mktemp("files")
    for folder, name in files:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(b"x")
    found = take_inventory(root)
    counted = len(found.images) + len(found.metadata) + len(found.tables) + len(found.left)
    assert counted == len(files)
    tools = [one for one in files if any(t in one[0] for t in (".git", "@eaDir", "__MACOSX"))]
    assert list(found.left.values()).count("in a folder that a tool made") == len(tools)
    used = {*found.images, *found.metadata}
    found.count(used)
    assert found.skipped.total == len(files) - len(used)


@pytest.mark.parametrize("end", [*ARCHIVES, *CONTAINERS, *NOT_READ, ".mp4", ".heic", ".jxl"])
def test_what_may_hold_images_is_refused_with_what_to_do(tmp_path: Path, end: str) -> None:
    name = f"faces{end}"
    (tmp_path / "happy").mkdir()
    (tmp_path / "happy" / name).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        take_inventory(tmp_path)
    text = str(caught.value)
    assert name in text
    command = ARCHIVES.get(end, "").split(" ")[0]
    assert command in text
    assert PLUGINS.get(end, "") in text


def test_an_archive_that_is_unpacked_already_is_counted(tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        (tmp_path / "happy").mkdir(exist_ok=True)
        (tmp_path / "happy" / name).write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("happy/0.png", b"x")
        archive.writestr("__MACOSX/happy/._0.png", b"x")
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "happy" / "1.png", "happy/1.png")
    left = take_inventory(tmp_path).left
    assert set(left.values()) == {"an archive whose images are all unpacked"} and len(left) == 2
    with zipfile.ZipFile(tmp_path / "all.zip", "a") as archive:
        archive.writestr("sad/0.png", b"x")
    with pytest.raises(DataError, match=r"all\.zip is an archive; unpack it with: unzip"):
        take_inventory(tmp_path)


def test_what_is_no_file_and_what_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "happy").mkdir()
    os.mkfifo(tmp_path / "happy" / "pipe.png")
    assert take_inventory(tmp_path).left == {"happy/pipe.png": "neither a file nor a folder"}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="loop"):
        take_inventory(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        take_inventory(tmp_path / "absent")
