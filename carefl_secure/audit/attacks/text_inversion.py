r"""Reads text out of unprotected low-rank updates.

The input of the query, key and value layers of the first block is the normed embedding of a token,
before any position enters. The gradient of ``lora_A`` there is a sum of such vectors, so its rows
lie in their span, and the gradient of ``lora_B`` is one of their images under A. A token was in the
text if its vector lies in that span: one projection tries the whole vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carefl_secure.audit.attacks.image_inversion import masked, noisy
from carefl_secure.audit.bounds.clopper_pearson import rate_figures
from carefl_secure.audit.views import Attack, Finding
from carefl_secure.model.loader import Base
from carefl_secure.model.lora import Adapter

Matrix = npt.NDArray[np.float64]
_LAYERS = ("q", "k", "v")
_RANK = 1e-6
_MARGIN = 0.05


@dataclass(frozen=True)
class UpdateView:
    """What somebody with an update of the first block and the frozen model sees."""

    blocks: tuple[tuple[Matrix, Matrix], ...]  # rows [rows, width] of an update, and all token vectors


class SpanCheck(Attack[UpdateView, Matrix]):
    """Ranks the vocabulary by the part of each token's vector outside the span of an update.

    References
    ----------
    Petrov et al., "DAGER: Exact Gradient Inversion for Large Language Models", NeurIPS 2024, whose
    check of full attention gradients carries over to low-rank ones.
    """

    name = "reconstruction"
    adversary = "anyone who gets hold of one client's update"
    view = UpdateView

    def attack(self, view: UpdateView) -> Matrix:
        """Return the residual of each token, shape [tokens]; small means "was in the text"."""
        total = np.zeros(len(view.blocks[0][1]))
        for rows, inputs in view.blocks:
            _, sizes, right = np.linalg.svd(rows, full_matrices=False)
            if not sizes.size or sizes[0] <= 0:
                continue
            basis = right[sizes > _RANK * sizes[0]]
            unit = inputs / np.maximum(np.linalg.norm(inputs, axis=1, keepdims=True), 1e-30)
            total += np.linalg.norm(unit - (unit @ basis.T) @ basis, axis=1)
        return total


def recall(residuals: Matrix, tokens: npt.NDArray[np.int64]) -> float:
    """Return the share of a text's n distinct tokens among the n with the least residual."""
    distinct = np.unique(tokens)
    if np.ptp(residuals) == 0:  # no information: what chance would give
        return len(distinct) / len(residuals)
    best = np.argsort(residuals, kind="stable")[: len(distinct)]
    return float(np.isin(distinct, best).mean())


class Texts:
    """Random texts on a fresh base; its first block gets an adapter with B not zero, and ``train`` leaves a client."""

    def __init__(self, base: Base, *, rank: int, alpha: int, train: str, length: int = 16) -> None:
        self._adapter = Adapter(base, rank=rank, alpha=alpha, targets=_LAYERS, train="both", seed=0)
        self._train = train
        self.length = length
        self._generator = torch.Generator().manual_seed(0)
        self._parts: dict[str, nn.Parameter] = {}
        with torch.no_grad():
            for name, parameter in self._adapter.parameters:
                if "lora_B" in name:
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=self._generator))
                if ".layers.0." in name:
                    self._parts[name] = parameter
        self._language = base.model.model.text_model
        self._head = base.model.lm_head
        self.vocabulary = int(self._language.embed_tokens.weight.shape[0])
        with torch.no_grad():
            weight = self._language.embed_tokens.weight
            self._inputs = self._language.layers[0].input_layernorm(weight).double().numpy()

    def draw(self) -> npt.NDArray[np.int64]:
        """Return one text of distinct tokens, shape [length]."""
        order = torch.randperm(self.vocabulary, generator=self._generator)
        return np.asarray(order[: self.length].numpy(), np.int64)

    def update(self, text: npt.NDArray[np.int64]) -> dict[str, Matrix]:
        """Return the gradients of one text's loss in the first block, by parameter."""
        ids = torch.from_numpy(text)[None]
        hidden: Tensor = self._language(input_ids=ids, use_cache=False).last_hidden_state
        logits = self._head(hidden)[0, :-1].float()
        loss = F.cross_entropy(logits, ids[0, 1:])
        grads = torch.autograd.grad(loss, list(self._parts.values()))
        return {n: g.double().numpy() for n, g in zip(self._parts, grads, strict=True)}

    def view(self, update: dict[str, Matrix]) -> UpdateView:
        """Return what leaves a client of an update: A's gradient, or B's alone."""
        if self._train != "B":
            rows = np.concatenate([g for n, g in update.items() if "lora_A" in n])
            return UpdateView(((rows, self._inputs),))
        blocks = []
        for name, gradient in update.items():
            if "lora_B" in name:
                a = self._parts[name.replace("lora_B", "lora_A")].detach().double().numpy()
                blocks.append((gradient, self._inputs @ a.T))
        return UpdateView(tuple(blocks))


def _clipped(update: dict[str, Matrix], norm: float) -> dict[str, Matrix]:
    length = math.sqrt(sum(float(np.sum(g**2)) for g in update.values()))
    return {name: g * (norm / max(length, 1e-30)) for name, g in update.items()}


def judge_spans(
    texts: Texts,
    *,
    clients: int,
    noise_multiplier: float,
    clipping_norm: float,
    trials: int = 10,
    private_text: bool = False,
) -> list[Finding]:
    """Attack one plain update, the sum of several, a masked one, and one under the run's noise.

    ``clients`` updates are summed; the noise multiplier and clipping norm are the run's, a multiplier of 0 leaves the
    last situation out; ``private_text``: the run's prompts hold private text.

    Plain updates and sums are ``measured``: nobody sees them where the masks hold. Under masks or
    noise ``falsified`` means that more than chance, 5 % and three standard errors came back.
    """
    attack = SpanCheck()
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(trials):
        drawn = [texts.draw() for _ in range(clients)]
        updates = [_clipped(texts.update(text), clipping_norm) for text in drawn]
        one, deviation = updates[0], noise_multiplier * clipping_norm
        shown = {
            "plain": one,
            "sum": {name: np.sum([u[name] for u in updates], axis=0) for name in one},
            "masked": {name: masked(gradient) for name, gradient in one.items()},
        }
        if noise_multiplier > 0:
            shown["noise"] = {name: noisy(gradient, deviation) for name, gradient in one.items()}
        for kind, update in shown.items():
            text = np.concatenate(drawn) if kind == "sum" else drawn[0]
            found[kind].append(recall(attack(texts.view(update)), text))
    situations = {
        "plain": "one client's plain update, one text",
        "sum": f"the plain sum of {clients} clients",
        "masked": "one client's masked upload",
        "noise": "one record under the noise that the run counts",
    }
    note = "" if private_text else " The run's own prompts hold no private text."
    findings = []
    for kind, values in found.items():
        tokens = texts.length * (clients if kind == "sum" else 1)
        chance = min(1.0, tokens / texts.vocabulary)
        mean = float(np.mean(values))
        error = math.sqrt(max(mean * (1 - mean), chance * (1 - chance)) / (tokens * trials))
        guarded = kind in ("masked", "noise")
        bad = guarded and mean > chance + _MARGIN + 3 * error
        findings.append(
            Finding(
                SpanCheck.name,
                kind,
                "falsified" if bad else "passed" if guarded else "measured",
                f"From {situations[kind]}, {mean:.1%} of the tokens came back (chance {chance:.1%}).{note}",
                {
                    **rate_figures("recall", round(mean * tokens * trials), tokens * trials),
                    "recall": mean,
                    "chance": chance,
                    "tokens": tokens,
                    "trials": trials,
                },
            )
        )
    return findings
