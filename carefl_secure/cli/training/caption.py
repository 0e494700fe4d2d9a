"""``carefl-secure caption``: describe a client's images in words, on the client."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from carefl_secure.cli import console as cli
from carefl_secure.cli.reporter import running
from carefl_secure.config import load_config

if TYPE_CHECKING:
    from carefl_secure.captions.cache import CaptionCache
    from carefl_secure.captions.run import Captioning


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """The options of ``caption``."""

    model: Annotated[str, typer.Option(metavar="ID_OR_PATH", help="LLaVA-1.5, or a SmolVLM2 on a small machine.")]
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the captions; it stays with you.")]
    prompt: Annotated[str, typer.Option(help="scene, person, both, or the path of a text file.")] = "scene"
    view: Annotated[
        Literal["full", "box", "crop"],
        typer.Option(help="The whole image, with the person's box drawn, or the box alone."),
    ] = "full"
    limit: Annotated[int | None, typer.Option(min=1, help="Caption only this many records of each split.")] = None
    revision: Annotated[str | None, typer.Option(help="Commit of a hub id.")] = None
    quantization: Annotated[Literal["nf4", "none"], typer.Option(help="4 bits for the text model, or none.")] = "nf4"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Compute type; auto is float16 on a graphics card, else bfloat16."),
    ] = "auto"
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 4
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption, in tokens.")] = 64
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the later run, such as data.labels."),
    ] = None


@cli.unfold
def caption(
    source: Annotated[str, typer.Argument(metavar="PATH|synthetic", help="Folder of the corpus, or synthetic.")],
    options: CaptionOptions,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Caption the images of a corpus into a folder that stays on this machine.

    A second call continues where the first one stopped. It shows counts, never a caption. To train with the captions,
    name the folder in model.context_cache. LLaVA-1.5 is under the Llama 2 Community License.
    """
    settings = load_config(None, options.set_ or (), data=source)
    cli.require_corpus(settings.data.source)
    # Heavy imports wait until the settings are checked.
    from carefl_secure.captions.captioner import load_captioner
    from carefl_secure.captions.prompts import caption_prompt
    from carefl_secure.captions.run import caption_all
    from carefl_secure.runs.captions import caption_parts

    text = caption_prompt(options.prompt)

    with running(quiet) as reporter:
        splits = caption_parts(settings, reporter)
        captioner = load_captioner(
            options.model,
            text,
            revision=options.revision,
            quantization=options.quantization,
            dtype=options.dtype,
            max_new_tokens=options.max_new_tokens,
            batch=options.batch,
        )
        kept, parts = caption_all(splits, captioner, options.cache, options.view, reporter, options.limit)
    if json:
        found = {name: one.as_json() for name, one in parts.items()}
        out = {"folder": str(kept.folder), "captioner": kept.facts, "splits": found}
        cli.write_json(out)
    else:
        _show(kept, parts)


def _show(cache: CaptionCache, parts: dict[str, Captioning]) -> None:
    names = ("records", "made now", "kept", "s/caption", "name an emotion", "their own")
    table = cli.result_table("split", *names, left=("split",))
    for name, one in parts.items():
        pace = f"{one.seconds / one.made:.2f}" if one.made else "-"
        shares = (f"{one.leakage.stem:.1%}", f"{one.leakage.own:.1%}")
        counts = (f"{one.records:,}", f"{one.made:,}", f"{one.kept:,}")
        table.add_row(name, *counts, pace, *shares)
    table.title, table.title_justify = "captions", "left"
    cli.result_console().print(table)
    cli.say(f"captions: {cache.folder}")
