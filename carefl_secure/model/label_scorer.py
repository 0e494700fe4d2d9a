"""Label scores of an adapter from cached features, a loss per record, and the gradient of its mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from carefl_secure.data.records import LabelSpace
from carefl_secure.errors import ConfigError
from carefl_secure.model.label_head import LabelHead, label_losses
from carefl_secure.model.label_tree import TokenTree, answer_log_likelihoods
from carefl_secure.model.lora import Adapter
from carefl_secure.model.text_states import TextStates, prompts, searched
from carefl_secure.model.vision.pixels import Pixels
from carefl_secure.model.vision.store import Features
from carefl_secure.model.vision.tiles import Tiles, whole_pictures
from carefl_secure.progress import SILENT, Reporter, tracked


@dataclass(frozen=True)
class LabelScorer:
    r"""Scores the labels of one space with an adapter, from cached features.

    Where several labels may hold, the score of label k is its log-likelihood ratio against the
    answer "None", an independent log-odds:

    .. math:: s_{ik} = \log p(\text{label}_k \mid x_i) - \log p(\text{None} \mid x_i)

    Where one label holds, it is the log-probability among the labels, :math:`\log
    \operatorname{softmax}_k \log p(\text{label}_k \mid x_i)`. If the adapter has a `LabelHead`, its share multiplies
    :math:`s_{ik}`, or the log-likelihoods before the softmax, and its logits are added. At a share of 0 the language
    model is not called for the answers. A head that reads text is given the states of the same prompts (`TextStates`).
    """

    adapter: Adapter
    space: LabelSpace
    question: str

    def __post_init__(self) -> None:
        prompter = self.adapter.base.prompter
        suffixes = prompter.suffixes(None, self.space.labels, reference=self.space.multi)
        prefix, _ = prompter.batch([self.question])
        object.__setattr__(self, "_tree", TokenTree.build(suffixes))
        object.__setattr__(self, "_prefix", prefix)

    def __call__(self, features: Tensor | Tiles | Pixels, captions: Sequence[str] | None = None) -> Tensor:
        """Return scores [batch, labels]; row i depends on record i only. Captions precede the question."""
        if isinstance(features, Pixels):
            features = features.encoded(self.adapter.base)
        features, head = features.to(self.adapter.base.device), self.adapter.head
        if head is None or not head.covers(self.space.labels):
            scores = self._answers(features, captions)
        else:
            scores = head(self._read_by(head, features, captions), self.space.labels)
            if not head.alone:
                scores = head.share * self._answers(features, captions) + scores
        return scores if self.space.multi else scores.log_softmax(-1)

    @property
    def states(self) -> TextStates:
        """What the frozen language model makes of records with this scorer's question."""
        return TextStates(self.adapter, self.question)

    def _read_by(self, head: LabelHead, features: Tensor | Tiles, captions: Sequence[str] | None) -> Tensor:
        return self.states(features, captions) if head.reads == "text" else whole_pictures(features)

    def _answers(self, features: Tensor | Tiles, captions: Sequence[str] | None) -> Tensor:
        """Return what the language model makes of the answers: log-odds, or log-likelihoods where one label holds."""
        grids = features.grids if isinstance(features, Tiles) else None
        if captions is None and grids is None:
            prefix: Tensor = self.__dict__["_prefix"].expand(len(features), -1)
            attention = torch.ones_like(prefix[:1])  # of equal lengths: nothing is read back from the device
        else:
            prefix, attention = prompts(self.adapter.base, self.question, features, captions)
        tiles = features.tiles if isinstance(features, Tiles) else features
        raw = answer_log_likelihoods(
            self.adapter.module, self.__dict__["_tree"], prefix, attention, tiles, self.adapter.base.dtype
        )
        return raw[:, :-1] - raw[:, -1:] if self.space.multi else raw

    def all(
        self, features: Features, batch: int = 64, captions: Sequence[str] | None = None, reporter: Reporter = SILENT
    ) -> npt.NDArray[np.float32]:
        """Score many records without gradients, shape [records, labels]."""
        _check_captions(captions, len(features))
        self.adapter.module.eval()
        self.keep_states(features, captions, reporter)

        @torch.no_grad()
        def part(i: int) -> Tensor:
            said = None if captions is None else captions[i : i + batch]
            return self(features[i : i + batch], said)

        task = f"scoring {len(features)} records"
        starts = range(0, len(features), batch)
        parts = tracked(self.adapter.base.parallel_batches(part, starts), reporter, task, len(starts))
        return np.asarray(torch.cat([part.cpu() for part in parts]).numpy(), np.float32)

    def keep_states(self, features: Features, captions: Sequence[str] | None, reporter: Reporter) -> None:
        """Make the states that the label head reads, if it reads any, of all records that lack them."""
        head = self.adapter.head
        reads = head is not None and head.reads == "text" and head.covers(self.space.labels)
        if reads and not searched(features):
            self.states.keep(features, captions, reporter)


class RecordLosses:
    """Losses of one party's records at the current adapter.

    ``features`` are [records, image tokens, width], ``targets`` float32 [records, labels];
    ``captions``, one for each record, are as private as the images.
    """

    def __init__(
        self,
        scorer: LabelScorer,
        features: Features,
        targets: npt.NDArray[np.float32],
        captions: Sequence[str] | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        _check_captions(captions, len(features))
        scorer.keep_states(features, captions, reporter)
        self.scorer = scorer
        self._captions = captions
        self._features = features
        self._targets = torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self._features)

    def losses(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Tensor:
        """Return the losses [batch]: cross-entropy; for several labels binary, the mean over labels."""
        rows = torch.as_tensor(np.asarray(indices, np.int64))
        captions = self._captions
        said = None if captions is None else [captions[i] for i in rows.tolist()]
        scores = self.scorer(self._features[rows], said)
        return label_losses(scores, self._targets[rows].to(scores.device), multi=self.scorer.space.multi)

    def scores(self, indices: npt.NDArray[np.int64], batch: int = 64) -> npt.NDArray[np.float32]:
        """Return the label scores of some records, shape [records, labels]."""
        said = None if self._captions is None else [self._captions[i] for i in indices.tolist()]
        return self.scorer.all(self._features[torch.from_numpy(indices)], batch, said)

    def targets(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the 0/1 labels of some records, shape [records, labels]."""
        return np.asarray(self._targets[torch.from_numpy(indices)].cpu().numpy())


def _check_captions(captions: Sequence[str] | None, records: int) -> None:
    if captions is not None and len(captions) != records:
        raise ConfigError(f"{len(captions)} captions do not fit {records} records; give one each")


def mean_gradient(
    parameters: Sequence[tuple[str, Parameter]],
    losses: Callable[[NDArray[np.int64]], Tensor],
    indices: NDArray[np.int64],
    micro_batch: int = 32,
) -> NDArray[np.float64]:
    r"""Return :math:`\frac{1}{B} \sum_i \nabla \ell_i`, the gradient of the mean loss, float64 [D].

    Nothing is clipped here, so this gradient may give away single records. It must stay inside the client, and what is
    made of it must be bounded before it leaves. Where a loss is NaN or infinite, so is the whole gradient, as NaN.

    The order of ``parameters`` is that of the result. ``losses`` maps at least one record index [B]
    to losses [B]; ``micro_batch`` records go through the model at once.
    """
    if not (indices.size and len(parameters) and micro_batch > 0):
        raise ConfigError("a gradient needs records, trainable weights and a micro-batch above 0")
    weights = [parameter for _, parameter in parameters]
    total, loss = np.zeros(sum(weight.numel() for weight in weights)), 0.0
    for start in range(0, indices.size, micro_batch):
        with torch.enable_grad():
            values = losses(indices[start : start + micro_batch])
            # A weight that the losses do not reach has a gradient of zero.
            found = torch.autograd.grad(values.sum(), weights, materialize_grads=True)
        loss += float(values.detach().sum())
        total += torch.cat([part.flatten().double() for part in found]).cpu().numpy()
    return total / indices.size if math.isfinite(loss) else np.full_like(total, np.nan)
