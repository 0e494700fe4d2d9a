r"""Whose picture made this update? Gradient matching on a low-rank update of one record.

The vision side is frozen and public, the adapter sits in the text model: what an update holds of a picture is what the
text model was given, its image features. Two attacks follow. *Identification*: with candidate records, compute each
one's update and compare. *Inversion*: with none, search for features whose update points the same way,

.. math:: \min_x\; 1 - \cos\left(\nabla_\theta \ell(x, y),\; u\right).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from carefl_secure.audit.views import Attack
from carefl_secure.errors import ConfigError
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.noise import KeyStream, SystemKeySource, add_masks, gaussian
from carefl_secure.secagg import wrap

Array = npt.NDArray[np.float64]
_SCALE = float(1 << 24)  # integer units; fine enough that rounding hides nothing


def clipped(update: Array, norm: float) -> Array:
    """Scale an update to length ``norm``, as normalised clipping does."""
    return np.asarray(update * (norm / max(float(np.linalg.norm(update)), 1e-30)))


def noisy(update: Array, deviation: float) -> Array:
    """Add Gaussian noise of the system's entropy, of one deviation for every entry."""
    stream = KeyStream(SystemKeySource().key("noise"))
    return update + gaussian(stream, update.size, deviation).reshape(update.shape)


def masked(update: Array) -> Array:
    """Return the words that leave a client: integers under one mask of the secure sum."""
    words = wrap(np.rint(update.ravel() * _SCALE).astype(np.int64), 32)
    add_masks(words, [SystemKeySource().key("mask")], [1])
    return words.view(np.int32).astype(np.float64).reshape(update.shape)


_STEPS = 100
_RATE = 0.05


@dataclass(frozen=True)
class CandidateView:
    """What somebody with an update and a set of candidate records sees."""

    update: Array  # [D], sent or opened
    candidates: Array  # [candidates, D], the updates that each would have made: the model is public


class ImageMatching(Attack[CandidateView, Array]):
    """Scores candidate records by the cosine of their update and the one that was seen."""

    name = "images"
    adversary = "anyone who gets hold of one client's update and has candidates"
    view = CandidateView

    def attack(self, view: CandidateView) -> Array:
        """Return one score per candidate, shape [candidates]."""
        lengths = np.linalg.norm(view.candidates, axis=1) * np.linalg.norm(view.update)
        return np.asarray(view.candidates @ view.update / np.maximum(lengths, 1e-30))


@dataclass(frozen=True)
class FeatureView:
    """An update and the public model, without candidates; the labels show in the sign of the head's gradient."""

    update: Array  # [D]
    gradient: Callable[[Tensor], Tensor]  # features [1, tokens, width] to their update [D], differentiably
    start: Tensor  # [1, tokens, width], mean features of public pictures


class FeatureInversion(Attack[FeatureView, Tensor]):
    """Searches for image features whose update points in the direction of the one seen.

    References
    ----------
    Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019; Geiping et al., "Inverting
    Gradients", NeurIPS 2020, for the cosine in place of the distance.
    """

    name = "images"
    adversary = "anyone who gets hold of one client's update"
    view = FeatureView

    def __init__(self, steps: int = _STEPS) -> None:
        self._steps = steps

    def attack(self, view: FeatureView) -> Tensor:
        """Return features, shape [1, tokens, width]."""
        goal = torch.from_numpy(view.update).float()
        goal = goal / goal.norm().clamp_min(1e-30)
        found = view.start.clone().requires_grad_()
        optimiser = torch.optim.Adam([found], lr=_RATE)
        # The fast kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            for _ in range(self._steps):
                made = view.gradient(found)
                loss = 1 - (made @ goal) / made.norm().clamp_min(1e-30)
                (found.grad,) = torch.autograd.grad(loss, [found])
                optimiser.step()
        return found.detach()


class Pictures:
    """Records and the updates they make at one adapter, float32 [D].

    ``features`` are [records, tokens, width]: the first ``candidates`` are candidates, the others,
    at least one, are added to sums. ``targets`` are float32 [records, labels].
    """

    def __init__(
        self,
        scorer: LabelScorer,
        adapter: npt.NDArray[np.float32],
        features: Tensor,
        targets: npt.NDArray[np.float32],
        captions: list[str] | None = None,
        *,
        candidates: int = 100,
    ) -> None:
        if len(features) <= candidates or candidates < 2:
            raise ConfigError(
                f"{len(features)} records cannot make {candidates} candidates and fill a sum; take more records"
            )
        held = scorer.adapter
        held.load(adapter)
        held.module.train()
        self._scorer, self._targets, self._captions = scorer, targets, captions
        self._parameters = [parameter for _, parameter in held.active(1)]
        self.features = features.float()
        self.count = candidates
        self.mean = self.features[candidates:].mean(0, keepdim=True)
        rows = [self._at(self.features[i : i + 1], i, False) for i in range(len(features))]
        self._updates = np.stack([row.detach().double().numpy() for row in rows])

    def _at(self, features: Tensor, index: int, graph: bool) -> Tensor:
        said = None if self._captions is None else [self._captions[index]]
        learner = RecordLosses(self._scorer, features, self._targets[index : index + 1], said)
        loss = learner.losses([0]).sum()
        grads = torch.autograd.grad(loss, self._parameters, create_graph=graph)
        return torch.cat([gradient.flatten() for gradient in grads])

    def update(self, index: int) -> Array:
        """Return the update of one record, of length 1."""
        return clipped(self._updates[index], 1.0)

    @property
    def fillers(self) -> int:
        """How many records are no candidates."""
        return len(self._updates) - self.count

    def seen(self, update: Array) -> CandidateView:
        """Return the view of somebody with candidates."""
        return CandidateView(update, self._updates[: self.count])

    def blind(self, update: Array, index: int) -> FeatureView:
        """Return the view of somebody without; ``index`` gives the labels and the words."""
        return FeatureView(update, lambda x: self._at(x, index, True), self.mean)

    def nearest(self, features: Tensor) -> int:
        """Return the candidate whose features lie nearest."""
        return int(((self.features[: self.count] - features) ** 2).sum((1, 2)).argmin())

    def likeness(self, features: Tensor, index: int) -> float:
        """Return the cosine of found and true features, both less the public mean."""
        found, true = ((x - self.mean).flatten() for x in (features, self.features[index : index + 1]))
        return float(found @ true / (found.norm() * true.norm()).clamp_min(1e-30))
