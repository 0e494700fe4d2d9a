"""``adapter/task.json``: what scoring an image needs besides the adapter's weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carefl_secure.config import Config
from carefl_secure.config.sections import AdapterConfig, ModelConfig
from carefl_secure.data.records import LabelSpace
from carefl_secure.errors import ConfigError, ModelError
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.loader import base_folder, image_cost, image_settings, quantization_config
from carefl_secure.model.saved import load_saved
from carefl_secure.run_folder import write_atomically
from carefl_secure.runs.build import label_scorer

FILE = "task.json"
_FORMAT = "carefl.task/1"
COPY = "base"
"""The folder of the embedded base, a copy, in the adapter's folder."""

MERGED = "."
"""The base of a merged checkpoint: the very folder, with the adapter in its weights."""


@dataclass(frozen=True)
class SavedTask:
    """A tuned model's task, in plain values; the card's script reads the same file.

    Parameters
    ----------
    base, revision : str
        What ``from_pretrained`` takes, relative to the adapter's folder where the base is copied.
    base_sha256 : str
        SHA-256 over configuration and weights of the base; another base is refused.
    quantization : dict or None
        Of the base, as ``BitsAndBytesConfig`` takes it.
    dtype : str
        What activations are computed in.
    images : dict
        Arguments of the image processor.
    image_cost : str
        Tiles and tokens of an image, in words.
    prompt : str
        The whole prompt, with ``<image>`` where the image goes.
    answers : list of str
        What is scored behind the prompt: every label, then where several may hold, "None".
    thresholds : list of float or None
        Of each label, the lowest score at which it is given, null for never; None where the label
        with the highest score is given.
    space, question : str
        Names of the label space, and the question alone.
    settings : dict
        The sections ``model`` and ``adapter`` of the run.
    """

    base: str
    revision: str | None
    base_sha256: str
    quantization: dict[str, Any] | None
    dtype: str
    images: dict[str, Any]
    image_cost: str
    prompt: str
    labels: list[str]
    multi: bool
    answers: list[str]
    thresholds: list[float | None] | None
    space: str
    question: str
    settings: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, config: Config, scorer: LabelScorer, thresholds: Sequence[float] | None) -> SavedTask:
        """Describe the task of a scorer; ``thresholds`` has one for each label."""
        space, base = scorer.space, scorer.adapter.base
        name, revision = _named(config.model)
        held = scorer.adapter.saved_config()
        model = config.model.model_dump(mode="json", exclude={"context_cache"})
        adapter = config.adapter.model_dump(mode="json")
        quantized = quantization_config(config.model.quantization, base.dtype)
        return cls(
            base=name,
            revision=revision,
            base_sha256=base.digest.hex(),
            quantization=None if quantized is None else quantized.to_dict(),
            dtype=config.model.compute_dtype,
            images=image_settings(base.processor),
            image_cost=image_cost(base),
            prompt=base.prompter.text(scorer.question),
            labels=list(space.labels),
            multi=space.multi,
            answers=base.prompter.answer_texts(space.labels, reference=space.multi),
            thresholds=None if thresholds is None else [one if math.isfinite(one) else None for one in thresholds],
            space=space.name,
            question=scorer.question,
            settings={
                "model": {
                    **model,
                    "prompt": "default",
                    "base": name if name != COPY else "embedded",
                    "revision": revision,
                    "end_answers": base.prompter.end_answers,
                },
                "adapter": {**adapter, "rank": held.r, "alpha": held.lora_alpha},
            },
        )

    @classmethod
    def read(cls, folder: Path) -> SavedTask:
        """Read the task in an adapter's folder; ModelError where it is missing or damaged."""
        path = folder / FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("format") != _FORMAT:
                raise ValueError("it is of another format")
            return cls(**found)
        except FileNotFoundError as error:
            raise ModelError(
                f"{folder} holds no {FILE}: the run is not finished, or an earlier version wrote it; finish it with "
                "train --resume, or train it again"
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{path} cannot be read: {error}; restore it from a copy") from error

    def write(self, folder: Path) -> None:
        """Write ``task.json``, and a copy of the embedded base, which no hub has."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.base == COPY:
            (folder / COPY).mkdir(exist_ok=True)
            for file in base_folder("embedded", None).iterdir():
                write_atomically(folder / COPY / file.name, file.read_bytes())
        text = json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=2, allow_nan=False)
        write_atomically(folder / FILE, f"{text}\n".encode())

    def scorer(self, folder: Path, **model: object) -> LabelScorer:
        """Load base and adapter; ``model`` replaces settings of the section of that name.

        ModelError is raised where the base is not the one that was tuned, or a weight does not fit;
        ConfigError for a run with captions. A merged checkpoint has no adapter of its own.
        """
        try:
            mine = {"base": str(folder)} if self.base == MERGED else {}
            config = Config.model_construct(
                model=ModelConfig(**{**self.settings["model"], **mine, **model}),
                adapter=AdapterConfig(**self.settings["adapter"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"the settings in {folder / FILE} are damaged: {error}; restore it from a copy"
            ) from error
        if config.model.context != "none":
            raise ConfigError(
                "the model of this run reads captions too; use evaluate, or train with model.context=none"
            )
        space = LabelSpace(self.space, tuple(self.labels), self.multi)
        found = dataclasses.replace(label_scorer(config, space), question=self.question)
        if self.base == MERGED:
            return found
        if found.adapter.base.digest.hex() != self.base_sha256:
            raise ModelError(
                f"the base {config.model.base!r} is not the one that this adapter was tuned on: its weights have "
                f"another SHA-256 than {FILE} says; take the base and revision of the run"
            )
        load_saved(found.adapter, folder)
        return found

    def cuts(self) -> Mapping[str, float] | None:
        """Return the threshold of each label, infinity for one that is never given."""
        if self.thresholds is None:
            return None
        return dict(zip(self.labels, (math.inf if cut is None else cut for cut in self.thresholds), strict=True))


def _named(model: ModelConfig) -> tuple[str, str | None]:
    """Return what ``from_pretrained`` takes for a base: a copy, a hub id with its commit, or a path."""
    if model.base == "embedded":
        return COPY, None
    folder = base_folder(model.base, model.revision).absolute()
    owner, _, name = folder.parent.parent.name.removeprefix("models--").partition("--")
    if folder.parent.name == "snapshots" and name:
        return f"{owner}/{name}", folder.name  # a snapshot in the hub's own cache
    return str(folder), None
