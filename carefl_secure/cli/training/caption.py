"""``carefl-secure caption``: put a client's images into words, on the client."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from carefl_secure.cli.reporter import RichReporter
from carefl_secure.config import load_config
from carefl_secure.progress import Reporter, SilentReporter

if TYPE_CHECKING:
    from carefl_secure.captions.cache import CaptionCache
    from carefl_secure.captions.run import Captioning

__all__ = ["caption"]

_WIDTH = 140


def caption(
    source: Annotated[
        str, typer.Argument(metavar="PATH|synthetic", help="Folder of the corpus, or synthetic.")
    ],
    model: Annotated[
        str,
        typer.Option(metavar="ID_OR_PATH", help="LLaVA-1.5, or a SmolVLM2 on a small machine."),
    ],
    cache: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the captions; it stays with you.")
    ],
    prompt: Annotated[
        str, typer.Option(help="scene, person, both, or the path of a text file.")
    ] = "scene",
    view: Annotated[
        Literal["full", "box", "crop"],
        typer.Option(help="The whole image, with the person's box drawn, or the box alone."),
    ] = "full",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Look at so many records of each split only.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a hub id.")] = None,
    quantization: Annotated[
        Literal["nf4", "none"], typer.Option(help="4 bits for the text model, or none.")
    ] = "nf4",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Compute type; auto is float16 on a graphics card, else bfloat16."),
    ] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption, in tokens.")] = 64,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the later run, such as data.labels."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Write the counts as JSON to standard output.")
    ] = False,
) -> None:
    """Caption the images of a corpus into a folder that never leaves this machine.

    Goes on where an earlier call stopped. Shows counts, never a caption; then name the folder in
    model.context_cache. LLaVA-1.5 comes under the Llama 2 Community License.
    """
    settings = load_config(None, set_ or (), data=source)
    # Heavy imports wait until the settings are known to be sound.
    from carefl_secure.captions.captioner import load_captioner
    from carefl_secure.captions.prompts import caption_prompt
    from carefl_secure.captions.run import caption_all
    from carefl_secure.runs.captions import caption_parts

    text = caption_prompt(prompt)

    def run(reporter: Reporter) -> tuple[CaptionCache, dict[str, Captioning]]:
        parts = caption_parts(settings, reporter)
        made = load_captioner(
            model,
            text,
            revision=revision,
            quantization=quantization,
            dtype=dtype,
            max_new_tokens=max_new_tokens,
            batch=batch,
        )
        return caption_all(parts, made, cache, view, reporter, limit)

    if quiet:
        kept, parts = run(SilentReporter())
    else:
        with RichReporter(Console(stderr=True)) as reporter:
            kept, parts = run(reporter)
    if json:
        found = {name: one.as_json() for name, one in parts.items()}
        out = {"folder": str(kept.folder), "captioner": kept.facts, "splits": found}
        typer.echo(json_.dumps(out, indent=2, allow_nan=False))
    else:
        _show(kept, parts, Console())


def _show(cache: CaptionCache, parts: dict[str, Captioning], console: Console) -> None:
    """Write counts and shares; a log has no width, there the table takes what it needs."""
    table = Table(title="captions", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("split", no_wrap=True)
    for name in ("records", "made now", "kept", "s/caption", "name an emotion", "their own"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in parts.items():
        pace = f"{one.seconds / one.made:.2f}" if one.made else "-"
        shares = (f"{one.leakage.stem:.1%}", f"{one.leakage.own:.1%}")
        counts = (f"{one.records:,}", f"{one.made:,}", f"{one.kept:,}")
        table.add_row(name, *counts, pace, *shares)
    console.print(table, width=None if console.is_terminal else _WIDTH)
    console.print(f"captions: {cache.folder}", markup=False, highlight=False, soft_wrap=True)
