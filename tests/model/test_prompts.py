"""Prompts are those that a checkpoint's own processor and chat template make, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from carefl_secure.errors import ModelError
from carefl_secure.model.embedded import build_processor
from carefl_secure.model.prompts import Prompter

QUESTION = "Which emotions does the person feel?"


def asked(processor: Any) -> str:
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


@pytest.mark.parametrize("form", ["hub", "own", "system"])
@pytest.mark.parametrize(("edge", "size", "grid"), [(64, (64, 64), (0, 0)), (256, (640, 300), (2, 4))])
def test_a_prompt_is_what_the_processor_makes(
    form: str, edge: int, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    processor = build_processor()
    if form != "own":  # the template of the SmolVLM2 checkpoints
        said = "<|im_start|>System: Be brief.<end_of_utterance>\n" if form == "system" else ""
        processor.chat_template = said + DEFAULT_CHAT_TEMPLATE
    picture = Image.new("RGB", size, "red")
    split = {"do_image_splitting": grid != (0, 0), "size": {"longest_edge": edge}}
    theirs = processor(text=[asked(processor)], images=[[picture]], images_kwargs=split, return_tensors="pt")
    ours, attention = Prompter(processor).batch([QUESTION], [grid])
    assert torch.equal(theirs["input_ids"], ours) and bool(attention.all())


def test_a_batch_of_images_cut_differently_is_padded_on_the_left() -> None:
    prompter = Prompter(build_processor())
    ids, attention = prompter.batch([QUESTION] * 2, [(0, 0), (2, 4)])
    whole = prompter.batch([QUESTION])[0]
    assert torch.equal(ids[0][attention[0].bool()], whole[0])
    assert attention[0, 0] == 0 and bool(attention[1].all())
    assert int((ids[1] == prompter.ids("<image>")[0]).sum()) == 9 * 16


@pytest.mark.parametrize("template", [None, "{{ messages[0].role }}", "{% for m in messages %}Assistant:{% endfor %}"])
def test_a_processor_without_a_fitting_template_is_refused(template: str | None) -> None:
    processor = build_processor()
    processor.chat_template = processor.tokenizer.chat_template = template
    with pytest.raises(ModelError, match="chat_template"):
        Prompter(processor)


def test_answers_end_where_it_is_asked_for_or_needed() -> None:
    processor = build_processor()
    (end,) = Prompter(processor).ids("<end_of_utterance>")
    for ends, labels, expected in (
        (False, ("Anger", "Joy"), False),
        (True, ("Anger", "Joy"), True),
        (False, ("Happily", "Happily Surprised"), True),
    ):
        rows = Prompter(processor, end_answers=ends).answers(labels, reference=False)
        assert [row[-1] == end for row in rows] == [expected] * 2
