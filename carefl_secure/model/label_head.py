"""A linear layer on what the frozen base makes of a record, whose logits are added to the scores of the labels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carefl_secure.model.weights import write_weights
from carefl_secure.run_folder import write_atomically
from carefl_secure.strict_json import with_digest

HEAD_FILE = "label_head.safetensors"
HEAD_SETTINGS = "label_head.json"
OLDER_SETTINGS = {"constant": 0.5, "reads": "image"}
"""What the settings of heads that earlier versions saved leave out."""

_CELLS = 4  # cells in a row of the grid that image tokens are averaged to
_STEP = 600.0
_CONSTANT, _CONSTANT_SINGLE = 0.5, 0.1  # where several labels may hold, and where one does
_LEAST = 1e-6  # norm below which a cell counts as empty
_SPREAD = 1e-3  # added to standard deviations of channels
_DIRECTIONS, _RECORDS_EACH = 8, 8  # most directions that a noisy head reduces, and records that each of them needs
_WHITENED = 64  # public records from which channels are whitened
_VALUES = 32_768  # most values of these directions
_FLOOR = 0.03  # added to variances of channels, over their mean
_CLEAR = 10.8  # of a likelihood ratio: chi-squared of one degree of freedom, p = 0.001


class LabelHead(nn.Module):
    r"""Logits of labels, linear in what the frozen base makes of a record.

    The image tokens of the last tile, the whole picture, are averaged to a grid of at most 4 x 4 cells. With
    :math:`v_c` [width] the mean of cell c, d = cells x width, a centre m [d] and a map R that are not trained, and
    W [labels, d + 1] the trained weights,

    .. math:: h(x) = \frac{\kappa}{d} W \begin{bmatrix} z \\ c \sqrt{d} \end{bmatrix}, \qquad
              z = \sqrt{d} \, \frac{R (u - m)}{\lVert R (u - m) \rVert}, \qquad
              u = \sqrt{\text{width}} \, [v_c / \lVert v_c \rVert]_c

    so that z has the same norm for every record. The constant takes c^2 / (1 + c^2) of a gradient's squared norm
    from z: c = 0.5 where several labels may hold, as logits must reach the labels' frequencies, else 0.1.
    The factor :math:`1 / d` makes one step of Adam move a logit by about
    :math:`\kappa` times the learning rate at most, whatever the width (Yang et al., "Tensor Programs V", arXiv
    2203.03466, table 8: output layers). W begins at zero, so an untrained head changes no score. The mean of u over
    public records is a good m: what all images share would otherwise take most of a gradient's norm.

    R shrinks directions in which public records vary most, so that few steps reach the others (`fit`). Without noise
    it whitens the channels of every cell, if there are 64 records or more. With noise, which whitening would amplify,
    it reduces up to 8 directions of u to the deviation of the next. ``share`` multiplies the base's own scores
    (`base_share`); at 0 the head is ``alone``.

    A head that reads text takes the frozen language model in place of the vision side: the mean of its last hidden
    states over the prompt with image and caption (`TextStates`) is the one cell. Channels of language models differ in
    size by orders of magnitude, so each is divided by its standard deviation over public records first. R is that of
    noise.

    Guarantees
    ----------
    z depends on its own record, the frozen base, m, R and the deviations, which all parties receive and no round
    changes.

    Parameters
    ----------
    labels : sequence of str
        Labels that have a row of W.
    tokens, width : int
        Image tokens of one tile, and the length of each.
    noisy : bool
        Whether rounds add noise.
    multi : bool
        Whether several labels may hold.
    reads : {"image", "text"}
        What z is made of: image tokens, or states of the language model, [records, 1, width].
    """

    def __init__(
        self, labels: Sequence[str], tokens: int, width: int,
        *, noisy: bool = True, multi: bool = True, reads: str = "image",
    ) -> None:  # fmt: skip
        super().__init__()
        self.alone, self._noisy, self._constant = False, noisy, _CONSTANT if multi else _CONSTANT_SINGLE
        self.labels, self.reads = tuple(labels), reads
        text = reads == "text"
        side = 0 if text else math.isqrt(tokens)
        self._side = side if side * side == tokens else 0  # 0: no square, so one cell
        self._tokens, self._width = tokens, width
        cells = min(_CELLS, self._side) ** 2 or 1
        self._factor = _STEP / (cells * width)
        self._block = cells * width if noisy else width
        self._few = noisy or text  # R reduces a few directions, and whitens nothing
        rows = min(_DIRECTIONS if self._few else width, max(1, _VALUES // self._block))
        if text:
            self.scale = nn.Parameter(torch.ones(width), requires_grad=False)
        self.centre = nn.Parameter(torch.zeros(cells * width), requires_grad=False)
        self.reduction = nn.Parameter(torch.zeros(rows, self._block), requires_grad=False)
        self.share = nn.Parameter(torch.ones(1), requires_grad=False)
        self.linear = nn.Linear(cells * width + 1, len(self.labels), bias=False)
        nn.init.zeros_(self.linear.weight)

    @property
    def gain(self) -> float:
        """Length of a logit's gradient by W, but for the constant."""
        return self._factor * math.sqrt(len(self.centre))

    def set_centre(self, features: Tensor) -> None:
        """Take the centre from features of public records, [records, image tokens, width]."""
        with torch.no_grad():
            if self.reads == "text":
                self.scale.copy_(1 / (features.to(self.scale.device).float().std((0, 1), correction=0) + _SPREAD))
            self.centre.copy_(self._cells(features.to(self.centre.device)).mean(0))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        r"""Take centre and R from features of public records, [records, image tokens, width].

        R maps every block b of u - m, a cell's channels or all of u, to
        :math:`b - \sum_i (1 - \sqrt{f / \lambda_i}) v_i v_i^\top b`, with the largest variances :math:`\lambda_i` of
        the blocks, their directions :math:`v_i`, and the first variance f that is not reduced.
        """
        self.set_centre(features)
        blocks = (self._cells(features.to(self.centre.device)) - self.centre).view(-1, self._block).double()
        rows, few = len(self.reduction), self._few
        self.reduction.zero_()
        rows = min(rows, len(blocks) // _RECORDS_EACH) if few else rows * (len(features) >= _WHITENED)
        if not rows:
            return
        _, lengths, directions = torch.linalg.svd(blocks, full_matrices=False)
        variances = lengths.square() / len(blocks)
        if not few:
            variances += _FLOOR * variances.mean()
        floor = variances[min(rows, len(variances) - 1)]
        keeps = (floor / variances[:rows].clamp_min(1e-12)).sqrt().clamp(max=1)
        self.reduction[: len(keeps)] = ((1 - keeps).sqrt()[:, None] * directions[:rows]).float()

    def weigh(self, share: float) -> None:
        """Set the factor of the base's own scores."""
        with torch.no_grad():
            self.share.fill_(share)
        self.alone = share == 0

    def covers(self, labels: Sequence[str]) -> bool:
        """Return whether every label has a row of W."""
        return set(labels) <= set(self.labels)

    def inputs(self, features: Tensor) -> Tensor:
        """Return z and the constant, float32 [batch, d + 1], of features [batch, image tokens, width]."""
        size = math.sqrt(len(self.centre))
        blocks = (self._cells(features) - self.centre).view(len(features), -1, self._block)
        reduced = (blocks - blocks @ self.reduction.T @ self.reduction).flatten(1)
        z = F.normalize(reduced, dim=1, eps=_LEAST) * size
        return F.pad(z, (0, 1), value=self._constant * size)

    def _cells(self, features: Tensor) -> Tensor:
        last = features[:, -self._tokens :].float()
        if self.reads == "text":
            last = last * self.scale
        if self._side:
            square = last.transpose(1, 2).reshape(len(last), -1, self._side, self._side)
            cells = F.adaptive_avg_pool2d(square, min(_CELLS, self._side)).flatten(2).transpose(1, 2)
        else:
            cells = last.mean(1, keepdim=True)
        return (F.normalize(cells, dim=2, eps=_LEAST) * math.sqrt(cells.shape[2])).flatten(1)

    def forward(self, features: Tensor, labels: Sequence[str]) -> Tensor:
        """Return the logits of ``labels``, [batch, labels]; zeros unless every label has a row of W."""
        place = {label: row for row, label in enumerate(self.labels)}
        if not self.covers(labels):
            return torch.zeros(len(features), len(labels), device=features.device)
        logits: Tensor = self.linear(self.inputs(features)) * self._factor
        return logits if tuple(labels) == self.labels else logits[:, [place[label] for label in labels]]

    def with_settings(self, about: dict[str, Any]) -> LabelHead:
        """Return a fresh head of the labels and the kind that saved settings state, for the same base."""
        labels = tuple(map(str, about["labels"]))
        kind: dict[str, Any] = {"noisy": bool(about["noisy"]), "reads": str(about["reads"])}
        head = LabelHead(labels, self._tokens, self._width, **kind)
        head._constant = float(about["constant"])
        return head

    def settings(self) -> dict[str, Any]:
        """Return what `with_settings` needs: labels, what is read, grid, block, whether rounds had noise, factors."""
        shape = {"image_tokens": self._tokens, "grid": min(_CELLS, self._side), "block": self._block}
        return {
            "labels": list(self.labels),
            "reads": self.reads,
            **shape,
            "noisy": self._noisy,
            "factor": self._factor,
            "constant": self._constant,
        }

    def save(self, folder: Path) -> None:
        """Write weights and settings next to an adapter."""
        write_atomically(folder / HEAD_SETTINGS, f"{json.dumps(with_digest(self.settings()), indent=2)}\n".encode())
        write_weights(folder / HEAD_FILE, self.state_dict())


def base_share(scores: npt.NDArray[np.float32], targets: npt.NDArray[np.float32], *, multi: bool) -> float:
    r"""Return the factor s in [0, 1] that the base's own scores deserve next to a label head, by public records.

    s and an offset for each label maximise the likelihood of the labels under :math:`s \cdot \text{scores} + b`. Where
    s = 0 is not clearly worse (likelihood ratio, p = 0.001), the scores say nothing of this corpus and s is 0: large
    and meaningless scores would hold a head back.
    """
    x, y = torch.from_numpy(scores).double(), torch.from_numpy(targets).double()
    point = torch.zeros(1 + x.shape[1], dtype=torch.float64, requires_grad=True)

    def loss(share: Tensor | float) -> Tensor:
        logits = share * x + point[1:]
        if multi:
            return F.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        return -(logits.log_softmax(1) * y).sum()

    def fitted(free: bool) -> tuple[float, float]:
        with torch.no_grad():
            point.zero_()
        descent = torch.optim.LBFGS([point], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            descent.zero_grad()
            value = loss(point[0] if free else 0.0)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        descent.step(closure)  # type: ignore[no-untyped-call]
        return float(closure().detach()), float(point[0].detach())

    (without, _), (best, share) = fitted(False), fitted(True)
    return min(1.0, share) if share > 0 and 2 * (without - best) > _CLEAR else 0.0


def label_losses(scores: Tensor, targets: Tensor, *, multi: bool) -> Tensor:
    """Return each record's loss [batch]: cross-entropy; for several labels binary, the mean over labels."""
    if multi:
        return F.binary_cross_entropy_with_logits(scores, targets, reduction="none").mean(1)
    return -(scores * targets).sum(1)


class HeadLosses:
    """Losses of a label head alone, without the language model: a logistic regression on the features.

    ``features`` are [records, image tokens, width], ``targets`` float32 [records, labels] in the order of the head's
    labels; ``multi`` says whether several labels may hold.
    """

    def __init__(self, head: LabelHead, features: Tensor, targets: npt.NDArray[np.float32], *, multi: bool) -> None:
        self.head, self._features, self._multi = head, features, multi
        self._targets = torch.from_numpy(targets)

    def losses(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Return one loss per record, shape [batch], as `RecordLosses` does."""
        rows = torch.from_numpy(indices)
        scores = self.head(self._features[rows], self.head.labels)
        return label_losses(scores if self._multi else scores.log_softmax(-1), self._targets[rows], multi=self._multi)

    @torch.no_grad()
    def scores(self, features: Tensor) -> npt.NDArray[np.float32]:
        """Return log-odds, or log-probabilities where one label holds, [records, labels]."""
        logits: Tensor = self.head(features, self.head.labels)
        return np.asarray((logits if self._multi else logits.log_softmax(-1)).numpy(), np.float32)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return what is trained."""
        return [(name, p) for name, p in self.head.named_parameters() if p.requires_grad]

    def step(self, weight: npt.NDArray[np.float32]) -> None:
        """Set the head's weights from a flat vector."""
        with torch.no_grad():
            self.head.linear.weight.copy_(torch.from_numpy(weight).view_as(self.head.linear.weight))
