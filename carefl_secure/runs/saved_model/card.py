"""The adapter's model card: metadata for the hub, the task, and a script that needs no more than peft."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

import yaml
from huggingface_hub import EvalResult, ModelCardData

from carefl_secure.config import Config
from carefl_secure.rounding import round_up
from carefl_secure.run_folder import write_atomically
from carefl_secure.runs.saved_model.task import COPY, Task
from carefl_secure.runs.summary import RunSummary

_TEMPLATE = Path(__file__).parent / "templates" / "card.md"


def write_card(
    folder: Path, task: Task, config: Config, summary: RunSummary, scored: str, spent: tuple[float, float]
) -> None:
    """Write ``README.md``: front matter of the hub, with the privacy of the run, and the text.

    ``scored`` names the test corpus; ``spent`` are epsilon, infinity without privacy, and delta.
    """
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
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
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
