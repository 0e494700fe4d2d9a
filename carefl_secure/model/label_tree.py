"""Many answers behind one prompt, scored in a single forward pass.

All suffixes (questions with their possible answers) form a token tree behind a shared prefix: a
node sees the prefix and its own ancestors only, and its position restarts behind the prefix. The
log-likelihoods equal those of one forward pass per answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from carefl_secure.errors import ModelError


@dataclass(frozen=True)
class TokenTree:
    """The suffixes of one prompt, common beginnings merged."""

    tokens: Tensor  # int64 [nodes]; an answer's last token is predicted, not read: no node unless others go through it
    parents: tuple[int, ...]  # a node's parent, -1 for the last prefix token; parents come before children
    steps: tuple[tuple[tuple[int, int], ...], ...]  # for each answer: node whose output predicts, token predicted

    @classmethod
    def build(cls, suffixes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> TokenTree:
        """Merge (question, answer) tokens; `ModelError` where an answer begins with another to the same question."""
        nodes: dict[tuple[int, ...], int] = {(): -1}
        tokens: list[int] = []
        parents: list[int] = []
        steps: list[tuple[tuple[int, int], ...]] = []
        whole = {(tuple(q), tuple(a)) for q, a in suffixes}
        for question, answer in suffixes:
            if not answer:
                raise ModelError("an answer has no tokens; give every label at least one character")
            for cut in range(1, len(answer)):
                if (tuple(question), tuple(answer[:cut])) in whole:
                    raise ModelError(
                        "one label is the beginning of another, so their likelihoods cannot be "
                        "compared; end every label with the end-of-utterance token"
                    )
            path = (*question, *answer)
            scored = []
            for depth, token in enumerate(path):
                here = path[:depth]
                if here not in nodes:
                    nodes[here] = len(tokens)
                    tokens.append(here[-1])
                    parents.append(nodes[here[:-1]])
                if depth >= len(question):
                    scored.append((nodes[here], token))
            steps.append(tuple(scored))
        return cls(torch.tensor(tokens, dtype=torch.int64), tuple(parents), tuple(steps))

    def ancestry(self) -> tuple[Tensor, Tensor]:
        """Return which node sees which, [nodes, nodes], and how deep each node lies."""
        count = len(self.parents)
        sees = torch.eye(count, dtype=torch.bool)
        depth = torch.ones(count, dtype=torch.int64)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees[node] |= sees[parent]
                depth[node] = depth[parent] + 1
        return sees, depth


def _layout(tree: TokenTree, attention: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the additive mask [batch or 1, 1, T, T] and the positions [batch or 1, T]."""
    if len(attention) > 1 and bool(attention.all()):
        attention = attention[:1]  # equal lengths: one mask serves all records
    batch, length = attention.shape
    real = attention.bool()
    sees, depth = tree.ancestry()
    total = length + len(tree.parents)
    allowed = torch.zeros(batch, total, total, dtype=torch.bool)
    allowed[:, :length, :length] = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None]
    allowed[:, length:, :length] = real[:, None]
    allowed[:, length:, length:] = sees
    allowed |= torch.eye(total, dtype=torch.bool)  # padding sees itself: no empty softmax
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    prefix = (attention.cumsum(1) - 1).clamp(min=0)
    positions = torch.cat([prefix, attention.sum(1, keepdim=True) - 1 + depth], 1)
    return mask[:, None], positions


def answer_log_likelihoods(
    model: nn.Module, tree: TokenTree, prefix: Tensor, attention: Tensor, features: Tensor, dtype: torch.dtype
) -> Tensor:
    r"""Score every answer of ``tree`` for every record in one pass, float32 [batch, answers].

    .. math:: s_{ik} = \sum_t \log p(a_{kt} \mid x_i, q_k, a_{k,<t})

    The result is differentiable; row i depends on record i only. ``prefix`` and ``attention``, int64 [batch, length],
    are the prompt up to the shared end, left-padded, attention 0 where padded, or [1, length] where all are alike;
    ``features`` are [tiles, image tokens, width], one tile for each record or those of one after the other; ``dtype``
    is the model's compute type, for the mask.
    """
    batch, length = prefix.shape
    device = features.device  # of the model; the small parts are made on the CPU and moved at once
    mask, positions = (part.to(device) for part in _layout(tree, attention, dtype))
    wanted = sorted({node for steps in tree.steps for node, _ in steps})
    place = {node: i for i, node in enumerate(wanted)}
    output = model(
        input_ids=torch.cat([prefix, tree.tokens.expand(batch, -1)], 1).to(device),
        attention_mask=mask.expand(batch, -1, -1, -1),
        position_ids=positions.expand(batch, -1),
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
        use_cache=False,
        logits_to_keep=torch.tensor([length + node for node in wanted]).to(device),
    )
    log_p = output.logits.float().log_softmax(-1)
    rows = torch.tensor([place[node] for steps in tree.steps for node, _ in steps]).to(device)
    tokens = torch.tensor([token for steps in tree.steps for _, token in steps]).to(device)
    owner = torch.tensor([k for k, steps in enumerate(tree.steps) for _ in steps]).to(device)
    scores = torch.zeros(batch, len(tree.steps), dtype=torch.float32, device=device)
    return scores.index_add(1, owner, log_p[:, rows, tokens])
