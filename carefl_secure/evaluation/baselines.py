"""What a score is worth: baselines that know nothing of faces, on the same split.

In closed form: a constant, a colour histogram, and the pixels of a thumbnail, the latter two by ridge regression,

    ``W = argmin ||Y - X W||^2 + lambda ||W||^2``,

with ``lambda`` and the thresholds chosen by leave-one-out on the training records only: the score
that record ``i`` would get without itself is ``y_i - (y_i - p_i) / (1 - h_i)``, where ``p`` are the
fitted values and ``h`` the diagonal of the hat matrix (Allen 1974; Golub, Heath and Wahba 1979).

And logistic regression on fixed features: what a practitioner would try before tuning a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.optimize import minimize

from carefl_secure.errors import DataError
from carefl_secure.evaluation.decisions import choose_thresholds
from carefl_secure.evaluation.figures import Figures

Images = Sequence[Image.Image] | npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_BINS = 4
_SIDE = 16
_RIDGES = tuple(10.0**power for power in range(-3, 5))


def _arrays(images: Images) -> Sequence[npt.NDArray[np.uint8]]:
    if isinstance(images, np.ndarray):
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise DataError(f"images must be uint8 [N, H, W, 3], not {images.dtype} {images.shape}")
        return list(images)
    return [np.asarray(image.convert("RGB")) for image in images]


def colour_histogram(images: Images) -> Floats:
    """Return the share of each of 4 x 4 x 4 colours, ``[N, 64]``."""
    rows = []
    for pixels in _arrays(images):
        bins = pixels.reshape(-1, 3) >> 6
        index = (bins[:, 0] * _BINS + bins[:, 1]) * _BINS + bins[:, 2]
        rows.append(np.bincount(index, minlength=_BINS**3) / len(index))
    return np.array(rows)


def thumbnail(images: Images) -> Floats:
    """Return the colours of a 16 x 16 thumbnail by box averaging, from 0 to 1, ``[N, 768]``."""
    rows = []
    for pixels in _arrays(images):
        height, width, _ = pixels.shape
        if height % _SIDE == 0 and width % _SIDE == 0:
            blocks = pixels.reshape(_SIDE, height // _SIDE, _SIDE, width // _SIDE, 3)
            small = blocks.mean((1, 3), dtype=np.float32)
        else:
            size = (_SIDE, _SIDE)
            small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
        rows.append(small.ravel() / 255)
    return np.array(rows, np.float64)


def _ridge(train: Floats, labels: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Return leave-one-out scores of the training records, and scores of the test records."""
    centre, spread = train.mean(0), train.std(0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    x, new = (train - centre) / spread, (test - centre) / spread
    mean = labels.mean(0)
    values, axes = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0)
    turned = x @ axes
    projected = turned.T @ (labels - mean)

    def left_out(ridge: float) -> Floats:
        hat = (turned**2) @ (1 / (values + ridge)) + 1 / len(x)
        fitted = turned @ (projected / (values + ridge)[:, None]) + mean
        return np.asarray(labels - (labels - fitted) / (1 - hat)[:, None])

    ridges = [factor * len(x) for factor in _RIDGES]
    ridge = min(ridges, key=lambda r: float(((labels - left_out(r)) ** 2).mean()))
    return left_out(ridge), (new @ axes) @ (projected / (values + ridge)[:, None]) + mean


def score_baselines(
    train_images: Images, train_targets: npt.NDArray[Any], test_images: Images, test_targets: npt.NDArray[Any]
) -> dict[str, dict[str, float]]:
    """Return ``mAP`` and ``macro_f1`` of ``constant``, ``colour_histogram`` and ``pixel_probe``.

    The constant's ``mAP`` is the mean prevalence of the labels that occur in the test records.

    There are at least two training images: PIL images, or uint8 ``[N, H, W, 3]``. Targets are 0/1 label matrices ``[N,
    K]``. Where every row has exactly one label, decisions take the highest score, as for single-label tasks; else they
    use thresholds from the training records.
    """
    for name, images, matrix in (("training", train_images, train_targets), ("test", test_images, test_targets)):
        if len(images) != len(matrix) or len(images) < 2:
            raise DataError(
                f"{len(images)} {name} images and {len(matrix)} rows of targets: baselines need "
                "at least two images and one row for each"
            )
    if train_targets.shape[1:] != test_targets.shape[1:]:
        raise DataError("training and test targets have different labels; use one label space")
    labels = train_targets.astype(np.float64)
    single = bool((train_targets.sum(1) == 1).all() and (test_targets.sum(1) == 1).all())
    shares = labels.mean(0)
    scored = {
        "constant": tuple(np.tile(shares, (len(rows), 1)) for rows in (labels, test_targets)),
        "colour_histogram": _ridge(colour_histogram(train_images), labels, colour_histogram(test_images)),
        "pixel_probe": _ridge(thumbnail(train_images), labels, thumbnail(test_images)),
    }
    found = {}
    for name, (known, new) in scored.items():
        thresholds = None if single else choose_thresholds(train_targets, known)
        found[name] = Figures(test_targets, new, multi=not single, thresholds=thresholds, names=("mAP", "macro_f1"))()
    return found


Features = npt.NDArray[np.float32]

STRENGTH = 0.01  # C of the regression: on vision features, with a few thousand records, better than the customary 1
_STEPS = 200


def logistic_regression(
    train: Features, targets: npt.NDArray[Any], test: Features, *, strength: float = STRENGTH
) -> Features:
    r"""Fit a logistic regression, and return the log-odds or log-probabilities of other records, [M, K].

    ``train`` [N, D] and ``test`` [M, D] are scaled to mean 0 and deviation 1 over the training records; ``targets``
    are 0/1, [N, K]; ``strength`` is C, the inverse of the strength of the penalty. Minimised by L-BFGS is

    .. math:: \frac12 \lVert W \rVert^2 + C \sum_i \ell_i

    with intercepts that are not penalised: the cross-entropy of a softmax where every record has one label, else the
    sum over the labels of binary cross-entropies. This is scikit-learn's ``LogisticRegression``.
    """
    if len(train) != len(targets) or len(train) < 2:
        raise DataError(f"{len(train)} training records and {len(targets)} rows of targets: at least two of each")
    single = bool((targets.sum(1) == 1).all())
    centre, spread = train.mean(0), train.std(0)
    scale = np.where(spread > 1e-9, spread, 1.0).astype(np.float32)
    x, new = (train - centre) / scale, (test - centre) / scale
    y = targets.astype(np.float32)
    shape = (x.shape[1] + 1, y.shape[1])

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weights = flat.reshape(shape).astype(np.float32)
        logits = x @ weights[:-1] + weights[-1]
        if single:
            logits -= logits.max(1, keepdims=True)
            total = np.log(np.exp(logits).sum(1, keepdims=True))
            cost, error = float((total[:, 0] - (logits * y).sum(1)).sum()), np.exp(logits - total) - y
        else:
            cost, error = float((np.logaddexp(0, logits) - logits * y).sum()), 1 / (1 + np.exp(-logits)) - y
        slope = np.concatenate([strength * (x.T @ error) + weights[:-1], strength * error.sum(0, keepdims=True)])
        penalty = 0.5 * float(np.square(weights[:-1], dtype=np.float64).sum())
        return strength * cost + penalty, slope.ravel().astype(np.float64)

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    weights = found.x.reshape(shape).astype(np.float32)
    logits = new @ weights[:-1] + weights[-1]
    return np.asarray(logits - np.logaddexp.reduce(logits, 1, keepdims=True) if single else logits, np.float32)
