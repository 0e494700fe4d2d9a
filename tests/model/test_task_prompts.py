"""Prompts are files: the default keeps its words, a wrong file is refused, the words are hashed."""

from __future__ import annotations

from pathlib import Path

import pytest

from carefl_secure.config import load_config
from carefl_secure.data.records import BASIC, CAERS, EMOTIC
from carefl_secure.errors import ConfigError
from carefl_secure.model.embedded import QUESTIONS, build_processor
from carefl_secure.model.prompts import TASK_PROMPTS, prompt_template, task_question
from carefl_secure.runs.build import base_hash_of


def test_the_default_is_what_the_embedded_model_was_taught() -> None:
    assert task_question("default", EMOTIC) == QUESTIONS["emotic"]
    assert task_question("default", BASIC) == QUESTIONS["basic"]
    assert task_question("default", CAERS) == "Which expression does the person show?"


def test_all_shipped_prompts_differ_and_stand_in_files() -> None:
    texts = {prompt_template(name) for name in TASK_PROMPTS}
    assert len(texts) == len(TASK_PROMPTS) >= 3
    folder = Path(__file__).parents[2] / "carefl_secure" / "model" / "prompt_files"
    assert {path.stem for path in folder.glob("*.txt")} == set(TASK_PROMPTS)


def test_labels_are_listed_where_a_prompt_asks_for_them() -> None:
    text = task_question("list", EMOTIC)
    assert all(label in text for label in EMOTIC.labels) and "{" not in text


@pytest.mark.parametrize("choice", TASK_PROMPTS)
def test_the_embedded_tokenizer_knows_every_word_of_a_prompt(choice: str) -> None:
    tok = build_processor().tokenizer
    text = task_question(choice, EMOTIC)
    ids = tok(text, add_special_tokens=False)["input_ids"]
    assert tok.unk_token_id not in ids
    assert tok.decode(ids) == text
    # Words it was taught stay whole; the prompt for real checkpoints falls into more pieces.
    assert len(ids) / len(text.split()) < (2.5 if choice == "expert" else 2.0)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Look closely.\n{question}\n")
    assert task_question(str(path), BASIC) == f"Look closely. {QUESTIONS['basic']}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 characters"),
        ("x" * 2001, "2001 characters"),
        ("Say <image> {question}", "signs < > |"),
        ("{question} {caption}", "placeholder {caption}"),
        ("{question!r}", "placeholder"),
        ("{question:>9}", "signs|placeholder"),
        ("{} what", "placeholder {}"),
        ("{question", "brace"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        prompt_template(str(path))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no task prompt 'no-such'.*default, list"):
        prompt_template("no-such")


def test_the_words_are_part_of_what_all_parties_share(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("{question} A")
    other.write_text("{question} A")
    digest = bytes(32)

    def hashed(prompt: object) -> bytes:
        return base_hash_of(digest, load_config(None, [f"model.prompt={prompt}"]))

    assert hashed("default") != hashed("list")
    assert hashed(one) == hashed(other)  # the same words from another place
    before = hashed(one)
    one.write_text("{question} B")
    assert hashed(one) != before
