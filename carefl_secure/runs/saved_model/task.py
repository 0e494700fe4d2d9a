"""``adapter/task.json``: what scoring an image needs besides the adapter's weights.

The script of the card reads the same file. ``base`` and ``revision`` are what ``from_pretrained`` takes, relative to
the folder where the embedded base is copied; ``quantization`` is what `BitsAndBytesConfig` takes, or null; ``images``
are arguments of the image processor; ``prompt`` has ``<image>`` where the image goes, and ``answers`` are scored
behind it, "None" last where several labels may hold. A label is given from its threshold on, null for never; without
``thresholds`` the label with the highest score is. ``settings`` are the sections ``model`` and ``adapter`` of the run.
``sha256`` covers all but ``base``, which `base_sha256` identifies: reading notices bit rot and accidental edits.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from huggingface_hub import EvalResult, ModelCardData

from carefl_secure.config import Config
from carefl_secure.config.sections.model import AdapterConfig, ModelConfig
from carefl_secure.data.records import LabelSpace
from carefl_secure.errors import ConfigError, ModelError
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.loader import base_folder, quantization_config
from carefl_secure.model.saved import load_head, load_saved
from carefl_secure.model.vision.tiles import image_cost, image_settings
from carefl_secure.rounding import round_up
from carefl_secure.run_folder import write_atomically
from carefl_secure.runs.build import label_scorer
from carefl_secure.runs.summary import RunSummary
from carefl_secure.strict_json import check_digest, load_json, with_digest

FILE, COPY, MERGED = "task.json", "base", "."
"""The file; the base where it is a copy of the embedded one; the base of a merged checkpoint."""

Task = dict[str, Any]
_FORMAT = "carefl.task/1"


def describe_task(config: Config, scorer: LabelScorer, thresholds: npt.NDArray[np.float64] | None) -> Task:
    """Describe the task of a scorer; ``thresholds`` are those of its labels, [labels]."""
    space, base, held = scorer.space, scorer.adapter.base, scorer.adapter.saved_config()
    name, revision = _named(config.model)
    quantized = quantization_config(config.model.quantization, base.dtype)
    cuts = None if thresholds is None else [cut if math.isfinite(cut) else None for cut in thresholds.tolist()]
    model = config.model.model_dump(mode="json", exclude={"context_cache", "device", "feature_cache"})
    own = {"base": "embedded" if name == COPY else name, "revision": revision, "prompt": "default"}
    return {
        "format": _FORMAT,
        "base": name,
        "revision": revision,
        "base_sha256": base.digest.hex(),
        "quantization": None if quantized is None else quantized.to_dict(),
        "dtype": str(base.dtype).removeprefix("torch."),
        "images": image_settings(base.processor),
        "image_cost": image_cost(base.processor, base.prompter, config.model.frames),
        "prompt": base.prompter.text(scorer.question),
        "labels": list(space.labels),
        "multi": space.multi,
        "answers": base.prompter.answer_texts(space.labels, reference=space.multi),
        "thresholds": cuts,
        "space": space.name,
        "question": scorer.question,
        "settings": {
            "model": {**model, **own, "end_answers": base.prompter.end_answers},
            "adapter": {
                **config.adapter.model_dump(mode="json"),
                "rank": held.r,
                "alpha": held.lora_alpha,
                "head": config.head,
            },
        },
    }


def read_task(folder: Path) -> Task:
    """Read the task in a folder; ModelError where it is missing or damaged."""
    path = folder / FILE
    try:
        found: Task = load_json(path.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ValueError("it is of another format")
        check_digest(found, "base")
        return found
    except FileNotFoundError as error:
        raise ModelError(f"{folder} holds no {FILE}: finish the run with train --resume, or train it again") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} cannot be read: {error}; restore it from a copy") from error


def write_task(task: Task, folder: Path) -> None:
    """Write ``task.json``, and a copy of the embedded base, which no hub has."""
    copies = list(base_folder("embedded", None).iterdir()) if task["base"] == COPY else []
    (folder / COPY if copies else folder).mkdir(parents=True, exist_ok=True)
    for file in copies:
        write_atomically(folder / COPY / file.name, file.read_bytes())
    write_atomically(folder / FILE, f"{json.dumps(with_digest(task, 'base'), indent=2, allow_nan=False)}\n".encode())


def task_scorer(task: Task, folder: Path, **model: object) -> LabelScorer:
    """Load base and adapter; ``model`` are settings of that section in place of the run's own.

    ModelError is raised for another base than the tuned one, or for damage; ConfigError for a run with captions.
    """
    merged = task.get("base") == MERGED
    try:
        given = {"feature_cache": None, **({"base": str(folder)} if merged else {})}
        own = {**task["settings"]["model"], **given, **model}
        adapter = AdapterConfig(**task["settings"]["adapter"])
        config = Config.model_construct(model=ModelConfig(**own), adapter=adapter)
        space = LabelSpace(task["space"], tuple(task["labels"]), task["multi"])
        digest, question = task["base_sha256"], task["question"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / FILE} is damaged: {error}; restore it from a copy") from error
    if config.model.context != "none" or config.model.frames > 1:
        raise ConfigError("the model of this run reads captions or clips; use evaluate, or train on images alone")
    found = dataclasses.replace(label_scorer(config, space), question=question)
    if merged:
        load_head(found.adapter, folder)
    elif found.adapter.base.digest.hex() != digest:
        raise ModelError(
            f"the base {config.model.base!r} is not the one that this adapter was tuned on, by its SHA-256; take the "
            "base and the revision of the run"
        )
    else:
        load_saved(found.adapter, folder)
    if found.adapter.head is not None and not found.adapter.head.covers(space.labels):
        raise ModelError(f"the label head in {folder} lacks a label of {FILE}; restore both from a copy")
    return found


def thresholds_of(task: Task) -> Mapping[str, float] | None:
    """Return the threshold of each label, infinity for one that is never given."""
    try:
        if task["thresholds"] is None:
            return None
        each = zip(task["labels"], task["thresholds"], strict=True)
        return {label: math.inf if cut is None else float(cut) for label, cut in each}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{FILE} does not state a threshold for each label; restore it from a copy") from error


def _named(model: ModelConfig) -> tuple[str, str | None]:
    """Return what ``from_pretrained`` takes for a base: a copy, a hub id with its commit, or a path."""
    if model.base == "embedded":
        return COPY, None
    folder = base_folder(model.base, model.revision).absolute()
    owner, _, name = folder.parent.parent.name.removeprefix("models--").partition("--")
    if folder.parent.name == "snapshots" and name:
        return f"{owner}/{name}", folder.name  # a snapshot in the hub's own cache
    return str(folder), None


_CARD = Path(__file__).parent / "templates" / "card.md"


def write_card(
    folder: Path, task: Task, config: Config, summary: RunSummary, scored: str, spent: tuple[float, float]
) -> None:
    """Write the model card for the test corpus ``scored``; ``spent`` are epsilon (infinity: no privacy) and delta."""
    base, name = task["base"], summary.folder.resolve().name
    copied, local = base == COPY, Path(base).is_absolute()
    public = copied and config.data.synthetic
    corpus = re.sub(r"[^\w.-]+", "-", scored).strip("-.") or "corpus"  # in the form of a hub id
    results = [
        EvalResult("image-classification", corpus, scored, kind, round(summary.after[figure], 4), dataset_split="test")
        for kind, figure in (("mean_average_precision", "mAP"), ("f1", "macro_f1"))
        if math.isfinite(summary.after.get(figure, math.nan))
    ]
    data = ModelCardData(
        base_model=None if copied or local else base,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        # A corpus may restrict what is trained on it, and the package cannot know.
        license="apache-2.0" if public else "other",
        license_name=None if public else "terms-of-base-and-corpus",
        tags=["lora", "peft", "federated-learning", "differential-privacy", "carefl-secure"],
        datasets=[corpus],
        model_name=name,
        eval_results=results,
    )
    where = "The base is in the folder `base`." if copied else "The base comes from the hub."
    if local:
        same = f"a copy of SHA-256 `{task['base_sha256']}`"
        where = f"The base was in `{base}`: elsewhere, set `base` in `task.json` to {same}."
    revision = f" at revision `{task['revision']}`" if task["revision"] else ""
    text = Template(_CARD.read_text(encoding="utf-8")).substitute(
        name=name,
        base="the embedded model of carefl-secure" if copied else f"`{base}`{revision}",
        clients=config.federation.clients,
        promise=summary.promise,
        before=_row(summary.before),
        after=_row(summary.after),
        prompt=task["prompt"],
        answers=", ".join(f"`{answer}`" for answer in task["answers"]),
        decision=_decision(task),
        images=task["image_cost"],
        dtype=task["dtype"],
        stored="4 bits (NF4)" if config.model.quantization == "nf4" else config.model.quantization,
        where=where,
    )
    private = math.isfinite(spent[0])
    privacy = {
        "epsilon": float(round_up(spent[0])) if private else None,
        "delta": spent[1] if private else None,
        "unit": config.privacy.unit,
        "trust": config.privacy.trust,
    }
    # Between the marks that carefl_secure.report replaces with its own, checked block.
    block = yaml.safe_dump({"differential_privacy": privacy}, sort_keys=False)
    head = f"{data.to_yaml()}\n# carefl-privacy: begin\n{block}# carefl-privacy: end\n"
    write_atomically(folder / "README.md", f"---\n{head}---\n{text}".encode())


def _row(figures: Mapping[str, float]) -> str:
    return " | ".join(f"{figures[name]:.3f}" if name in figures else "" for name in ("mAP", "macro_f1"))


def _decision(task: Task) -> str:
    if not task["multi"]:
        return "A score is the log-probability of a label among the labels; the label with the highest is given."
    each = zip(task["labels"], task["thresholds"], strict=True)
    cuts = ", ".join(f"{label} {'never' if cut is None else format(cut, '.3f')}" for label, cut in each)
    return f"A score is the log-odds of a label against None. Labels are given from these scores on: {cuts}."
