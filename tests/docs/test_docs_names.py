"""Every path, module, option, setting and link that a page names exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
import pytest
import typer.main

from carefl_secure.cli.app import app
from carefl_secure.config.explain import KNOWN
from carefl_secure.config.root import Config
from tests.support import pages

# Options of programs that are not ours, and pages of the past.
FOREIGN = {
    "--gid",
    "--home-dir",
    "--now",
    "--system",
    "--build-arg",
    "--database",
    "--disable-runtime-dependency-installation",
    "--insecure",
    "--isolation",
    "--run-config",
    "--simulation",
    "--strict",
}
HISTORY = {"CHANGELOG.md"}
# Names of the form section.key that are files or attributes, not settings.
NO_SETTING = re.compile(r"\.(?:py|md|yaml|jsonl?|html|pt|toml)$")


def all_options(command: click.Command) -> set[str]:
    found = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    if isinstance(command, click.Group):
        for name in command.commands:
            found |= all_options(command.commands[name])
    return found | {"--help"}


OPTIONS = all_options(typer.main.get_command(app))
SCRIPTS = "\n".join(p.read_text("utf-8") for p in (pages.ROOT / "benchmarks").glob("*.py"))


def unresolved(name: str) -> bool:
    """Tell whether a dotted name is neither a module nor an attribute of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                return True
            found = getattr(found, attribute)
        return False
    return True


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_every_path_exists(page: Path) -> None:
    if page.name in HISTORY:
        return
    missing = sorted(p for p in pages.source_paths(page) if not pages.exists(p))
    assert not missing, f"{pages.name_of(page)} names {missing}"


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_every_module_and_object_resolves(page: Path) -> None:
    entry_points = {f"carefl_secure.{g}" for g in ("aggregators", "corpora", "local_rules")}
    names = pages.module_names(page) - entry_points
    missing = sorted(name for name in names if not name.endswith(".py") and unresolved(name))
    assert not missing, f"{pages.name_of(page)} names {missing}"


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_every_option_exists(page: Path) -> None:
    if page.name in HISTORY:
        return
    named = pages.option_names(page) - OPTIONS - FOREIGN
    missing = sorted(option for option in named if f'"{option}"' not in SCRIPTS)
    assert not missing, f"{pages.name_of(page)} names {missing}"


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_every_setting_exists(page: Path) -> None:
    if page.name in HISTORY:
        return
    named = pages.setting_names(page, set(Config.model_fields))
    missing = sorted(n for n in named if n not in KNOWN and not NO_SETTING.search(n))
    assert not missing, f"{pages.name_of(page)} names {missing}"


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_every_link_leads_to_a_file_and_its_heading(page: Path) -> None:
    for link in pages.links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve()
        assert target.exists(), f"{pages.name_of(page)} links to {link}"
        if anchor and target.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in heads}
            assert anchor in slugs, f"{pages.name_of(page)} links to {link}"


def test_what_does_not_exist_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`configs/emotic.yaml`, `noise/nowhere.py`, `carefl_secure.noise.Nothing`, "
        "`carefl-secure train --set privacy.epsilom=1 --no-such`, `nowhere.py`.\n"
    )
    assert all(not pages.exists(p) for p in pages.source_paths(page))
    assert len(pages.source_paths(page)) == 3
    assert all(unresolved(name) for name in pages.module_names(page))
    assert pages.option_names(page) == {"--set", "--no-such"}
    assert pages.setting_names(page, {"privacy"}) == {"privacy.epsilom"}


def test_the_security_review_names_tests_that_exist() -> None:
    page = (pages.ROOT / "docs" / "security-review.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[^`]+::[^`]+)`", page)
    assert len(named) > 25
    for test in named:
        path, name = test.split("::")
        assert f"def {name}(" in (pages.ROOT / path).read_text(encoding="utf-8"), test
