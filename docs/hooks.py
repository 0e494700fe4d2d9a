"""What the site needs besides the pages: tables made from the code, and two scripts kept local.

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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import typer.main

from carefl_secure.cli.app import app
from carefl_secure.config.explain import settings
from carefl_secure.config.root import Config
from carefl_secure.data.corpora.image_folder_layout import SPLIT_NAMES
from carefl_secure.data.open_corpus import FORMATS
from carefl_secure.data.readers import file_kinds
from carefl_secure.data.readers.images import VIDEO_SUFFIXES

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
_KINDS = {
    "file": "path",
    "float": "number",
    "float range": "number",
    "integer": "whole number",
    "integer range": "whole number",
}
"""Types of click, as the settings page names them."""
_SETTINGS = "<!-- settings -->"
_COMMANDS = "<!-- commands -->"
_FILES = ("<!-- files of an image folder -->\n\n", "\n\n<!-- made by docs/hooks.py -->")
"""What stands around the table that `write_files_table` keeps current."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page asks for them."""
    if _SETTINGS in markdown:
        markdown = markdown.replace(_SETTINGS, settings_page())
    if _COMMANDS in markdown:
        markdown = markdown.replace(_COMMANDS, commands_page())
    return markdown


def files_table() -> str:
    """Return what each kind of file below a data folder is taken for, and every format's marks."""

    def names(values: Iterable[str]) -> str:
        return ", ".join(f"`{value}`" for value in values)

    rows = [
        ("images", "read", f"every suffix that the installed Pillow opens, such as {names(file_kinds.COMMON)}"),
        ("metadata", "read, in any folder", names(file_kinds.METADATA_NAMES)),
        ("tool folders", "skipped and counted", names((".*", *file_kinds.TOOL_FOLDERS))),
        ("tool files", "skipped and counted", names((".*", *(n.strip() for n in file_kinds.TOOL_FILES)))),
        (
            "text",
            "skipped and counted; refused where it names images and there is no metadata",
            names(file_kinds.TABLES),
        ),
        ("archives", "refused with the command; skipped if all is unpacked", names(file_kinds.ARCHIVES)),
        ("containers", "refused", names(file_kinds.CONTAINERS)),
        ("videos", "refused with the command", names(sorted(VIDEO_SUFFIXES))),
        ("other images", "refused with the command", names(file_kinds.NOT_READ)),
        (
            "images for a package that is not installed",
            "refused with its name",
            ", ".join(f"`{end}` ({name})" for end, name in file_kinds.PLUGINS.items()),
        ),
        ("any other file", "skipped and counted", ""),
    ]
    table = ["| files | what is done | names |", "| --- | --- | --- |"]
    table += [f"| {kind} | {done} | {which} |" for kind, done, which in rows]
    table += ["", "| split | names of its folder, in any case |", "| --- | --- |"]
    for split in ("train", "val", "test"):
        table.append(f"| {split} | {names(n for n, one in SPLIT_NAMES.items() if one == split)} |")
    table += ["", "| `data.format` | what it is found by |", "| --- | --- |"]
    table += [f"| `{one.name}` | {one.looks_like} |" for one in FORMATS.values()]
    return "\n".join(table)


def with_files_table(page: str) -> str:
    """Return the page on images with the table made anew."""
    before, begin, rest = page.partition(_FILES[0])
    return before + begin + files_table() + _FILES[1] + rest.partition(_FILES[1])[2]


def on_post_build(config: Any, **_: Any) -> None:
    """Lay the scripts for diagrams and formulas next to the pages."""
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
    """Return every setting with its allowed values, default and meaning, section by section."""
    lines, before = [], ""
    for one in settings():
        section, dot, _ = one.key.partition(".")
        if not dot:
            lines += [f"## {one.key}", "", one.meaning, "", f"Allowed: {one.allowed}. Default: `{one.default}`.", ""]
            continue
        if section != before:
            kind = Config.model_fields[section].annotation
            lines += [*([""] if before else []), f"## {section}", "", (kind.__doc__ or "").strip(), ""]
            lines += ["| setting | allowed | default | meaning |", "| --- | --- | --- | --- |"]
            before = section
        shown = one.default if one.default == "required" else f"`{one.default}`"
        lines.append(f"| `{one.key}` | {one.allowed} | {shown} | {_cell(one.meaning)} |")
    return "\n".join([*lines, ""])


def commands_page() -> str:
    """Return the help of every command: its arguments, then its options with type and default."""
    lines: list[str] = []

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        context = click.Context(command, info_name=" ".join(path))
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                if inner is not None:
                    walk(inner, (*path, name))
            return
        lines.extend([f"## {' '.join(path[1:])}", "", _help(command), ""])
        usage = " ".join([*path, *(piece for piece in command.collect_usage_pieces(context))])
        lines.extend(["```text", usage, "```", ""])
        lines.extend(["| option | type | default | meaning |", "| --- | --- | --- | --- |"])
        for parameter in command.params:
            if parameter.name != "help":
                lines.append(_row(parameter))
        lines.append("")

    walk(typer.main.get_command(app), ("carefl-secure",))
    return "\n".join(lines)


def _row(parameter: click.Parameter) -> str:
    names = ", ".join((*parameter.opts, *parameter.secondary_opts))
    if isinstance(parameter, click.Argument):
        names = parameter.make_metavar(click.Context(click.Command("")))
    text = _cell(getattr(parameter, "help", None) or "")
    if getattr(parameter, "is_flag", False):
        kind, default = "flag", "off"
    else:
        names += f" {parameter.metavar}" if parameter.metavar and parameter.opts[0][0] == "-" else ""
        kind = _KINDS.get(parameter.type.name, parameter.type.name)
        if isinstance(parameter.type, click.Choice):
            kind = ", ".join(f"`{word}`" for word in parameter.type.choices)
        kind += ", repeatable" if parameter.multiple or parameter.nargs == -1 else ""
        default = f"`{parameter.default}`"
        if parameter.default is None or parameter.default == ():
            default = "none"
    if parameter.required:
        default = "required"
    return f"| `{names}` | {kind} | {default} | {text} |"


def _help(command: click.Command) -> str:
    """Return the help of a command without the marks of rich."""
    return (command.help or "").replace("\\[", "[").strip()


def _cell(text: str) -> str:
    return text.replace("\\[", "[").replace("|", "\\|").replace("*", "\\*")


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


if __name__ == "__main__":
    PAGE = Path(__file__).parent / "guide" / "images.md"
    PAGE.write_text(with_files_table(PAGE.read_text("utf-8")), encoding="utf-8")
