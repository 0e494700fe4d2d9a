"""What the site needs beside the pages: tables made from the code, and two scripts kept local.

The scripts for diagrams and formulas are fetched once, when the site is built, and checked against
fixed hashes; a page that is read asks nobody for anything.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import click
import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from carefl_secure.cli.app import app
from carefl_secure.config.root import Config

ARCHIVES = (
    (
        "https://registry.npmjs.org/mermaid/-/mermaid-11.12.0.tgz",
        "93492e4d609be83653a41c435f4cbd7e74419f7fa6b4fc90a8c983195f64af82",
        r"package/dist/(mermaid\.min\.js)",
    ),
    (
        "https://registry.npmjs.org/katex/-/katex-0.16.25.tgz",
        "02d90b1189affc2db16cda01dda5c9fbb7a9fc3767dae0ef542560a7f16c642f",
        r"package/dist/(?:contrib/)?(katex\.min\.(?:js|css)|auto-render\.min\.js|fonts/.*\.woff2)",
    ),
)
_SETTINGS = "<!-- settings -->"
_COMMANDS = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page asks for them."""
    if _SETTINGS in markdown:
        markdown = markdown.replace(_SETTINGS, settings_page())
    if _COMMANDS in markdown:
        markdown = markdown.replace(_COMMANDS, commands_page())
    return markdown


def on_post_build(config: Any, **_: Any) -> None:
    """Lay the scripts for diagrams and formulas beside the pages."""
    target = Path(config["site_dir"]) / "assets"
    for address, digest, wanted in ARCHIVES:
        packed = io.BytesIO(_archive(address, digest))
        with tarfile.open(fileobj=packed, mode="r:gz") as archive:
            for member in archive.getmembers():
                found = re.fullmatch(wanted, member.name)
                content = archive.extractfile(member) if found else None
                if found and content is not None:
                    place = target / found[1]
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content.read())


def settings_page() -> str:
    """Return every setting with its default and meaning, a table for each section."""
    lines = []
    for name, field in Config.model_fields.items():
        kind = _section(field.annotation)
        if kind is None:
            lines += [f"## {name}", "", field.description or "", ""]
            continue
        lines += [f"## {name}", "", (kind.__doc__ or "").strip(), ""]
        lines += ["| setting | default | meaning |", "| --- | --- | --- |"]
        for key, entry in kind.model_fields.items():
            default = entry.get_default(call_default_factory=True)
            shown = "required" if default is PydanticUndefined else f"`{_plain(default)}`"
            meaning = (entry.description or "").replace("|", "\\|")
            lines.append(f"| `{name}.{key}` | {shown} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def commands_page() -> str:
    """Return the help of every command, as a terminal shows it."""
    lines: list[str] = []

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        context = click.Context(command, info_name=" ".join(path))
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                if inner is not None:
                    walk(inner, (*path, name))
            return
        lines.extend([f"## {' '.join(path[1:])}", "", (command.help or "").strip(), ""])
        lines.extend(["| option | meaning |", "| --- | --- |"])
        for option in command.params:
            names = ", ".join((*option.opts, *option.secondary_opts))
            text = (getattr(option, "help", None) or "").replace("|", "\\|")
            lines.append(f"| `{names}` | {text} |")
        lines.append("")

    walk(typer.main.get_command(app), ("carefl-secure",))
    return "\n".join(lines)


def _section(annotation: Any) -> type[BaseModel] | None:
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    )


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _archive(address: str, digest: str) -> bytes:
    cache = Path(os.environ.get("CAREFL_CACHE", Path.home() / ".cache" / "carefl-secure")) / "docs"
    kept = cache / address.rsplit("/", 1)[1]
    if kept.is_file():
        content = kept.read_bytes()
    else:
        with urllib.request.urlopen(address, timeout=120) as answer:
            content = answer.read()
    if hashlib.sha256(content).hexdigest() != digest:
        raise SystemExit(f"{address} is not what was pinned; look at it before you go on")
    cache.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(content)
    return content
