"""One packed forward gives exactly what one forward per answer gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from carefl_secure.data.records import COMPOUND, EMOTIC
from carefl_secure.errors import ModelError
from carefl_secure.model.label_tree import TokenTree, answer_log_likelihoods
from carefl_secure.model.loader import Base, load_base


@pytest.fixture(scope="module")
def base(tiny: Path) -> Base:
    return load_base(str(tiny), quantization="none")


def naive(base: Base, prompt: list[int], answer: list[int], features: torch.Tensor) -> float:
    """One answer the plain way: append it, run the model, add up its tokens."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = base.model(
            input_ids=ids,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            use_cache=False,
        ).logits[0]
    log_p = logits.log_softmax(-1)
    first = len(prompt) - 1
    return sum(float(log_p[first + i, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize("labels", [EMOTIC.labels, COMPOUND.labels], ids=["emotic", "compound"])
def test_packed_equals_naive_with_prompts_of_different_length(base: Base, labels: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 16, 128)
    texts = ["Which one?", "Context: a man in a park. Which emotions does he feel?", "Why?"]
    prefix, attention = base.prompter.batch(texts)
    suffixes = base.prompter.suffixes(None, labels, reference=True)
    tree = TokenTree.build(suffixes)
    with torch.no_grad():
        packed = answer_log_likelihoods(base.model, tree, prefix, attention, features, torch.float32)
    assert packed.shape == (3, len(labels) + 1)
    for row, text in enumerate(texts):
        prompt, _ = base.prompter.batch([text])
        for column, (_, answer) in enumerate(suffixes):
            expected = naive(base, prompt[0].tolist(), answer, features[row : row + 1])
            assert float(packed[row, column]) == pytest.approx(expected, abs=1e-4)


def test_questions_behind_one_prefix_equal_each_question_alone(base: Base) -> None:
    torch.manual_seed(1)
    features = torch.randn(2, 16, 128)
    prefix = base.prompter.prefix("")
    first = base.prompter.suffixes("Which mouth?", ("smile", "frown"), reference=False)
    second = base.prompter.suffixes("Which brows?", ("raised", "inner raised"), reference=False)
    with torch.no_grad():
        packed = answer_log_likelihoods(
            base.model,
            TokenTree.build(first + second),
            prefix.expand(2, -1),
            torch.ones(2, prefix.shape[1], dtype=torch.int64),
            features,
            torch.float32,
        )
    for row in range(2):
        for column, (question, answer) in enumerate(first + second):
            expected = naive(base, prefix[0].tolist() + question, answer, features[row : row + 1])
            assert float(packed[row, column]) == pytest.approx(expected, abs=1e-4)


def test_common_beginnings_are_shared() -> None:
    tree = TokenTree.build([((), (1, 2)), ((), (1, 3)), ((), (4,))])
    assert tree.tokens.tolist() == [1]
    assert tree.steps == (((-1, 1), (0, 2)), ((-1, 1), (0, 3)), ((-1, 4),))


def test_a_label_that_begins_another_is_refused_and_the_prompter_closes_such_labels(base: Base) -> None:
    with pytest.raises(ModelError, match="beginning of another"):
        TokenTree.build([((), (1,)), ((), (1, 2))])
    rows = base.prompter.answers(("Happily", "Happily Surprised"), reference=False)
    assert rows[0][-1] == rows[1][-1]  # both now end with the end-of-utterance token
    TokenTree.build([((), row) for row in rows])


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(ModelError, match="no tokens"):
        TokenTree.build([((1, 2), ())])
