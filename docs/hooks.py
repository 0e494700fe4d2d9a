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
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from carefl_secure.cli.app import app
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
    lines = []
    for name, field in Config.model_fields.items():
        kind = _section(field.annotation)
        if kind is None:
            lines += [f"## {name}", "", field.description or "", ""]
            lines += [f"Allowed: {allowed(Config.model_json_schema()['properties'][name])}. "]
            lines += [f"Default: `{_plain(field.get_default(call_default_factory=True))}`.", ""]
            continue
        schema = kind.model_json_schema()["properties"]
        lines += [f"## {name}", "", (kind.__doc__ or "").strip(), ""]
        lines += ["| setting | allowed | default | meaning |", "| --- | --- | --- | --- |"]
        for key, entry in kind.model_fields.items():
            default = entry.get_default(call_default_factory=True)
            shown = "required" if default is PydanticUndefined else f"`{_plain(default)}`"
            meaning = _cell(entry.description or "")
            lines.append(f"| `{name}.{key}` | {allowed(schema[key])} | {shown} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def allowed(schema: dict[str, Any]) -> str:
    """Say in words which values a JSON schema accepts."""
    if "anyOf" in schema:
        return " or ".join(allowed(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        words = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{word}`" for word in words)
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items", schema.get("prefixItems", [{}])[0:1])
        inner = items[0] if isinstance(items, list) else items
        return f"list of {allowed(inner)}"
    if kind == "null":
        return "`null`"
    if kind == "boolean":
        return "`true`, `false`"
    if kind == "string":
        return "path" if schema.get("format") == "path" else "text"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    words = "whole number" if kind == "integer" else "number"
    if low is not None:
        words += f" {'≥' if 'minimum' in schema else '>'} {low:g}"
    if high is not None:
        words += f"{' and' if low is not None else ''} "
        words += f"{'≤' if 'maximum' in schema else '<'} {_count(high)}"
    return words


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


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:g}"


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


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
