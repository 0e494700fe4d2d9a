"""Reads a MATLAB file after checking that it is intact.

SciPy's reader trusts the lengths that a file states and can crash the process on a damaged one, and
it does not verify the checksums of compressed variables. They are verified here first. Damage to an
uncompressed file is found only where its variables do not end with the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from carefl_secure.errors import DataError

_HEAD = 128
_COMPRESSED = 15


def _verify(path: Path) -> None:
    """Walk over the variables of a file of level 5 (MATLAB's v6 and v7)."""
    content = path.read_bytes()
    if len(content) < _HEAD + 8 or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("it has not the head of a MATLAB file")
    major = content[125 if content[126:128] == b"IM" else 124]
    if major == 2:
        raise NotImplementedError
    if major != 1:
        raise ValueError("it has not the head of a MATLAB file")
    order, at = ("<" if content[126:128] == b"IM" else ">"), _HEAD
    while at < len(content):
        if at + 8 > len(content):
            raise ValueError("it was cut off")
        kind, length = struct.unpack_from(f"{order}II", content, at)
        at += 8
        if at + length > len(content):
            raise ValueError("it was cut off, or a length in it is damaged")
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            stream.decompress(content[at : at + length])
            if not stream.eof:
                raise ValueError("a variable in it was cut off")
        at += length


def read_mat(path: Path) -> Mapping[str, Any]:
    """Return the variables of a MATLAB file: structs as objects with fields, single values bare.

    A `DataError` refuses a file that is damaged, cut off, of format 7.3, or no MATLAB file.
    """
    try:
        _verify(path)
        stored: Mapping[str, Any] = loadmat(path, squeeze_me=True, struct_as_record=False)
    except NotImplementedError as error:
        raise DataError(f"{path} was saved in MATLAB's format 7.3; save it again with '-v7'") from error
    except (OSError, ValueError, TypeError, KeyError, EOFError, OverflowError, MatReadError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a MATLAB file: {error}; fetch it again") from error
    return stored
