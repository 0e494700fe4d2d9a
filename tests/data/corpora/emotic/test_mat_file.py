from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from carefl_secure.data.corpora.emotic.mat import read_mat
from carefl_secure.errors import DataError


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "a.mat"
    words = np.array([["one", "two"]], object)
    savemat(path, {"a": {"b": words, "c": np.arange(200.0)}, "d": 3}, do_compression=True)
    return path


def test_a_whole_file(whole: Path) -> None:
    stored = read_mat(whole)
    assert list(stored["a"].b) == ["one", "two"]
    assert stored["d"] == 3


def test_no_single_damaged_byte_of_a_variable_gets_through(whole: Path) -> None:
    """SciPy alone reads past the damage, or brings the process down."""
    content = whole.read_bytes()
    for at in range(128 + 8, len(content), 3):
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        whole.write_bytes(bytes(damaged))
        with pytest.raises(DataError, match="fetch it again"):
            read_mat(whole)


def test_a_cut_off_file(whole: Path) -> None:
    content = whole.read_bytes()
    ends = {128 + 8 + int.from_bytes(content[132:136], "little")}  # between two variables
    for keep in set(range(0, len(content), 7)) - ends:
        whole.write_bytes(content[:keep])
        with pytest.raises(DataError, match="fetch it again"):
            read_mat(whole)


def test_format_7_3_and_other_files(whole: Path) -> None:
    content = whole.read_bytes()
    whole.write_bytes(content[:124] + b"\x00\x02IM" + content[128:])
    with pytest.raises(DataError, match="-v7"):
        read_mat(whole)
    for other in (b"", b"x" * 4096, content[:124] + b"\x00\x09IM" + content[128:]):
        whole.write_bytes(other)
        with pytest.raises(DataError, match="head of a MATLAB file"):
            read_mat(whole)
    with pytest.raises(DataError, match="cannot be read"):
        read_mat(whole.parent / "absent.mat")


def test_a_variable_that_ends_early_though_its_length_says_so(whole: Path) -> None:
    content = whole.read_bytes()
    length = int.from_bytes(content[132:136], "little")
    short = length - 6
    stream = content[136 : 136 + short]
    rest = content[136 + length :]
    whole.write_bytes(content[:132] + short.to_bytes(4, "little") + stream + rest)
    with pytest.raises(DataError, match="a variable in it was cut off"):
        read_mat(whole)
