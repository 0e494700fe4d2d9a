"""The adapter's model card: metadata for the hub, the task, and a script that needs no more than peft."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData

from carefl_secure.config import Config
from carefl_secure.rounding import round_up
from carefl_secure.run_folder import write_atomically
from carefl_secure.runs.saved_model.task import COPY, FILE, SavedTask
from carefl_secure.runs.summary import RunSummary

SCRIPT = """\
import json, sys, torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, Idefics3Processor

task = json.load(open("task.json"))
hub = {"revision": task["revision"]} if task["revision"] else {}
four_bit = BitsAndBytesConfig.from_dict(task["quantization"]) if task["quantization"] else None
dtype = getattr(torch, task["dtype"])
base = AutoModelForImageTextToText.from_pretrained(task["base"], dtype=dtype, quantization_config=four_bit, **hub)
processor = Idefics3Processor.from_pretrained(task["base"], **hub)
model = PeftModel.from_pretrained(base, ".").eval()
for module in model.modules():
    module.support_avx512bf16_for_cpu = False  # else bitsandbytes rounds 4-bit layers to bfloat16

@torch.no_grad()
def scores(image):
    inputs = processor(text=[task["prompt"]], images=[[image]], images_kwargs=task["images"], return_tensors="pt")
    ids, found = inputs.pop("input_ids"), []
    del inputs["attention_mask"]
    for answer in task["answers"]:
        tail = torch.tensor(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
        logits = model(input_ids=torch.cat([ids, tail[None]], 1), **inputs).logits[0, ids.shape[1] - 1 : -1]
        found.append(logits.float().log_softmax(-1).gather(1, tail[:, None]).sum())
    found = torch.stack(found)
    found = found[:-1] - found[-1] if task["multi"] else found.log_softmax(-1)
    return dict(zip(task["labels"], found.tolist()))

for path in sys.argv[1:]:
    print(json.dumps({"image": path, "scores": scores(Image.open(path).convert("RGB"))}))
"""
"""Run in the adapter's folder with image paths; prints one JSON object a line."""

_BODY = """
# {name}

A LoRA adapter that [carefl-secure](https://pypi.org/project/carefl-secure/) tuned on {base}, with {clients} clients
that kept their images. {promise}

| test split | mAP | macro F1 |
| --- | --- | --- |
| untuned | {before} |
| tuned | {after} |

## Task

The prompt, with the image in the place of `<image>`:

```text
{prompt}
```

The answers: {answers}. {decision}

{images} Activations are computed in {dtype}; the base is stored in {stored}.

## Use

Install `transformers`, `peft`, `pillow`{extra}, go to this folder, and run the script below with the paths of
images. It reads `{file}` and gives the scores of carefl-secure to 1e-4 in float32; in bfloat16 the same scores
differ by about 0.2 as soon as the length of a batch differs. {where}

```python
{script}```

With carefl-secure: `carefl-secure predict FOLDER IMAGES`.
"""


def write_card(
    folder: Path, task: SavedTask, config: Config, summary: RunSummary, scored: str, spent: tuple[float, float]
) -> None:
    """Write ``README.md``: front matter of the hub, with the privacy of the run, and the text.

    ``scored`` is the name of the test corpus; ``spent`` are epsilon, infinity without privacy, and delta.
    """
    epsilon, delta = spent
    name, private = summary.folder.resolve().name, math.isfinite(epsilon)
    named = "the embedded model of carefl-secure" if task.base == COPY else f"`{task.base}`"
    corpus = re.sub(r"[^\w.-]+", "-", scored).strip("-.") or "corpus"  # in the form of a hub id
    public = config.data.synthetic and task.base == COPY
    data = ModelCardData(
        base_model=None if task.base == COPY or Path(task.base).is_absolute() else task.base,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        # A corpus may restrict what is trained on it, and the package cannot know.
        license="apache-2.0" if public else "other",
        license_name=None if public else "terms-of-base-and-corpus",
        tags=["lora", "peft", "federated-learning", "differential-privacy", "carefl-secure"],
        datasets=[corpus],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=corpus,
                dataset_name=f"{scored} ({task.space} labels)",
                dataset_split="test",
                metric_type=kind,
                metric_name=figure,
                metric_value=round(summary.after[figure], 4),
            )
            for kind, figure in (("mean_average_precision", "mAP"), ("f1", "macro_f1"))
            if math.isfinite(summary.after.get(figure, math.nan))
        ],
    )
    text = _BODY.format(
        name=name,
        base=named + (f" at revision `{task.revision}`" if task.revision else ""),
        clients=config.federation.clients,
        promise=summary.promise,
        before=_row(summary.before),
        after=_row(summary.after),
        prompt=task.prompt,
        answers=", ".join(f"`{answer}`" for answer in task.answers),
        decision=_decision(task),
        images=task.image_cost,
        dtype=task.dtype,
        stored="4 bits (NF4)" if config.model.quantization == "nf4" else config.model.quantization,
        extra=" and `bitsandbytes`" if task.quantization else "",
        file=FILE,
        where=_where(task),
        script=SCRIPT,
    )
    privacy = {
        "epsilon": float(round_up(epsilon)) if private else None,
        "delta": delta if private else None,
        "unit": config.privacy.unit,
        "trust": config.privacy.trust,
    }
    # Between the marks that carefl_secure.report replaces with its own, checked block.
    block = yaml.safe_dump({"differential_privacy": privacy}, sort_keys=False)
    head = f"{data.to_yaml()}\n# carefl-privacy: begin\n{block}# carefl-privacy: end\n"
    write_atomically(folder / "README.md", f"---\n{head}---\n{text}".encode())


def _row(figures: Mapping[str, float]) -> str:
    return " | ".join(f"{figures[name]:.3f}" if name in figures else "" for name in ("mAP", "macro_f1"))


def _decision(task: SavedTask) -> str:
    if not task.multi:
        return "A score is the log-probability of a label among the labels; the highest is given."
    cuts = ", ".join(
        f"{label} {'never' if cut is None else format(cut, '.3f')}"
        for label, cut in zip(task.labels, task.thresholds or [], strict=True)
    )
    return (
        "A score is the log-odds of a label against the answer None. A label is given from its threshold on, which "
        f"was chosen on the public split: {cuts}."
    )


def _where(task: SavedTask) -> str:
    if task.base == COPY:
        return "The base is in the folder `base`."
    if not Path(task.base).is_absolute():
        return "The base comes from the hub."
    return (
        f"The base is a folder of the machine that trained, `{task.base}`: on another, set `base` in `{FILE}` to a "
        f"copy with SHA-256 `{task.base_sha256}`."
    )
