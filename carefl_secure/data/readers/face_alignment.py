r"""Faces rotated, scaled and cropped so that their landmarks match a template.

The map is the similarity (rotation, one scale, shift) that brings the landmarks nearest to the
template in the least-squares sense, in closed form after Umeyama (IEEE Trans. PAMI 13(4), 1991,
equations 40 to 42). With centred points :math:`s_i` and :math:`t_i`, :math:`\Sigma = \frac1K \sum_i
t_i s_i^\top = U D V^\top` and :math:`\sigma^2 = \frac1K \sum_i \|s_i\|^2`,

.. math:: R = U V^\top, \quad c = \operatorname{tr}(D) / \sigma^2, \quad
      b = \bar t - c R \bar s .

Coordinates are continuous: the first pixel covers 0 to 1 in both directions.

Where :math:`\det(UV^\top) < 0` the nearest map is a reflection: left and right are exchanged in the
annotation. Such landmarks are refused; Umeyama's correction would cut out another part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.data.readers.images import decode
from carefl_secure.errors import DataError

Floats = npt.NDArray[np.float64]

_COMMON = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366))
_MOUTH = ((41.5493, 92.3655), (70.7299, 92.2041))
TEMPLATE: Floats = np.array([*_COMMON, *_MOUTH], np.float64) / 112
"""Where both eyes, the nose tip and both corners of the mouth go, as shares of the side.

The template of ArcFace's 112 x 112 crops (Deng et al., CVPR 2019; ``insightface``, file
``face_align.py``). The template that RAF-DB's own aligned images were made with is not published.
"""

_FLAT = 0.01  # narrowest over widest extent of landmarks that are taken for a face


def landmark_fault(points: npt.ArrayLike, size: tuple[int, int] | None = None) -> str | None:
    """Say why a face cannot be aligned by its landmarks [K, 2] in pixels, in an image of ``size``; None if it can."""
    found = np.asarray(points, np.float64)
    if found.ndim != 2 or found.shape[1] != 2 or len(found) < 3 or not np.isfinite(found).all():
        return "no usable landmarks"
    extents = np.linalg.svd(found - found.mean(0), compute_uv=False)
    if not extents[1] > _FLAT * extents[0]:
        return "landmarks in one point or on one line"
    if size is not None and ((found < 0) | (found > np.array(size))).any():
        return "landmarks outside the image"
    return None


def fit_similarity(source: npt.ArrayLike, target: npt.ArrayLike) -> Floats:
    """Return the similarity that brings ``source`` [K, 2] nearest to ``target`` [K, 2], K >= 3.

    The result ``[c R | b]``, [2, 3], takes a point ``p`` to ``matrix[:, :2] @ p + matrix[:, 2]``. A `DataError`
    refuses points that are missing, mirrored, or lie in one point or on one line.
    """
    one, other = (np.asarray(points, np.float64) for points in (source, target))
    fault = landmark_fault(one) or landmark_fault(other)
    if fault is None and one.shape != other.shape:
        fault = f"{len(one)} landmarks for a template of {len(other)}"
    if fault is not None:
        raise DataError(f"{fault}: a face is aligned by three points or more; correct them")
    centred, goal = one - one.mean(0), other - other.mean(0)
    left, widths, right = np.linalg.svd(goal.T @ centred)
    turn = left @ right
    if np.linalg.det(turn) < 0:
        raise DataError("landmarks mirrored: left and right are exchanged; correct their order")
    scaled = widths.sum() / (centred**2).sum() * turn
    return np.column_stack([scaled, other.mean(0) - scaled @ one.mean(0)])


def align(path: Path, landmarks: npt.ArrayLike, size: tuple[int, int], side: int) -> AlignedFace | str:
    """Return the face in an image file, or why its landmarks cannot align it."""
    if fault := landmark_fault(landmarks, size):
        return fault
    try:
        matrix = fit_similarity(landmarks, TEMPLATE * side)
    except DataError:  # everything else was checked above
        return "landmarks mirrored"
    return AlignedFace(path, tuple(tuple(row) for row in matrix.tolist()), side)


def warp(image: Image.Image, matrix: npt.NDArray[Any], side: int) -> Image.Image:
    """Return the square of ``side`` pixels that a similarity [2, 3] (`fit_similarity`) makes of an image.

    Areas outside are black. An image shrunk by 2 or more is averaged first.
    """
    shrink = 1 / math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
    factor = max(1, int(shrink))
    back = np.linalg.inv(np.vstack([matrix, [0.0, 0.0, 1.0]]))[:2] / factor
    small = image.reduce(factor) if factor > 1 else image
    return small.transform(
        (side, side), Image.Transform.AFFINE, tuple(back.ravel().tolist()), resample=Image.Resampling.BILINEAR
    )


@dataclass(frozen=True)
class AlignedFace:
    """A face cut from an image file by the similarity ``matrix``, to ``side`` x ``side`` pixels."""

    path: Path
    matrix: tuple[tuple[float, ...], ...]
    side: int

    def open(self) -> Image.Image:
        """Read the image and cut the face."""
        return warp(decode(self.path), np.array(self.matrix), self.side)
