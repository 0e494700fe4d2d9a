"""The tables that the site makes from the code, and that the site asks nobody for anything."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from carefl_secure import __version__
from carefl_secure.config.root import Config
from carefl_secure.data.corpora.image_folder_layout import SPLIT_NAMES
from carefl_secure.data.open_corpus import FORMATS
from carefl_secure.data.readers import file_kinds
from carefl_secure.data.readers.file_kinds import image_suffixes
from carefl_secure.errors import CareflError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_page_names_every_setting_with_allowed_values_and_default(hooks: ModuleType) -> None:
    page = hooks.settings_page()
    for section, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        names = [f"`{section}.{key}`" for key in inner] if inner else [f"## {section}"]
        assert all(name in page for name in names), names
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert all(len(row) == 4 and row[1].strip() and row[2].strip() for row in rows)
    assert "| `privacy.trust` | `secagg`, `none` | `secagg` |" in page
    assert "| `privacy.epsilon` | number > 0 and ≤ 1,000 | `8.0` |" in page
    assert "| `federation.local_lr` | number > 0 and ≤ 10,000 or `auto` | `auto` |" in page
    assert "| `run.trackers` | list of `tensorboard`, `mlflow`, `wandb` | `[]` |" in page


def test_every_setting_is_described() -> None:
    for section, field in Config.model_fields.items():
        for key, entry in getattr(field.annotation, "model_fields", {}).items():
            assert entry.description, f"{section}.{key} has no description"


def test_the_guide_lists_what_is_read_skipped_and_refused(hooks: ModuleType) -> None:
    page = (ROOT / "docs/guide/images.md").read_text(encoding="utf-8")
    assert page == hooks.with_files_table(page), "run: python docs/hooks.py"
    assert set(file_kinds.COMMON) <= image_suffixes()
    for table in (
        file_kinds.COMMON,
        file_kinds.METADATA_NAMES,
        file_kinds.TOOL_FOLDERS,
        file_kinds.TABLES,
        file_kinds.ARCHIVES,
        file_kinds.CONTAINERS,
        file_kinds.NOT_READ,
        SPLIT_NAMES,
        FORMATS,
    ):
        assert all(f"`{name}`" in page for name in table)
    assert all(f"`{choice}`" in page for choice in ("refuse", "drop", "keep"))


def test_commands_page_names_options(hooks: ModuleType) -> None:
    page = hooks.commands_page()
    assert "## train" in page and "`--resume" in page and "## ledger verify" in page
    assert "| `--quiet, -q` | flag | off |" in page
    assert re.search(r"\| `--engine[^`]*` \| text \| `inprocess` \|", page)
    assert "| `--epsilon` | number | none |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(len(re.split(r"(?<!\\) \| ", row)) == 4 for row in rows)


def test_no_command_to_copy_begins_with_a_prompt() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"^\s*\$ ", page.read_text("utf-8"), re.MULTILINE), page


def test_exit_codes_are_all_documented() -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text("utf-8")

    def walk(kind: type[CareflError]) -> None:
        if not kind.__module__.startswith("carefl_secure"):
            return  # another test's own
        if "exit_code" in vars(kind):  # others share the code of the class that they refine
            assert re.search(rf"^\| {kind.exit_code} \| `{kind.__name__}`", page, re.MULTILINE), kind
        for inner in kind.__subclasses__():
            walk(inner)

    walk(CareflError)


def test_pages_in_the_navigation_exist() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8").replace("!!python/name:", "")
    listed = re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load(text)["nav"]))
    here = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(listed) == here


def test_pages_link_to_no_foreign_script() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert not re.search(r"<(script|img|link)[^>]+https?://", page.read_text("utf-8")), page


def test_the_citation_names_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == __version__
    assert cited["cff-version"] == "1.2.0" and cited["authors"] and cited["license"] == "Apache-2.0"


def test_the_workflow_calls_the_make_targets_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert any(step.startswith("make test ") for step in steps)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    called = [target for step in steps for target in re.findall(r"\bmake ([a-z-]+)", step)]
    assert set(called) <= set(targets)


def test_the_hooks_before_a_commit_are_the_tools_of_make_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]
    make = (ROOT / "Makefile").read_text("utf-8")
    for hook in hooks["hooks"]:
        tool = hook["entry"].split()[0].rsplit("/", 1)[1]
        assert f"$(BIN)/{tool} " in make


def test_the_watch_page_names_every_section_that_trackers_get() -> None:
    source = (ROOT / "carefl_secure" / "runs" / "trackers" / "base.py").read_text("utf-8")
    sections = re.search(r"^_SECTIONS = \((.*?)\)", source, re.MULTILINE | re.DOTALL)
    assert sections is not None
    (sentence,) = re.findall(
        r"settings of the sections (.*?), without", (ROOT / "docs" / "guide" / "watch.md").read_text("utf-8")
    )
    assert re.findall(r"`(\w+)`", sentence) == re.findall(r'"(\w+)"', sections[1])


def test_the_architecture_page_names_every_room_and_agrees_with_the_walls() -> None:
    from tests.test_walls import KNOWS, PACKAGE

    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = page.partition("| room |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| `")]
    words = {"configuration": "config", "command line": "cli"}
    named = set()
    for rooms, _, forbidden in rows:
        for room in re.findall(r"`(\w+)`", rooms):
            named.add(room)
            others = [words.get(w.strip(), w.strip()) for w in re.split(r",| and ", forbidden)]
            assert not KNOWS[room] & set(others), (room, others)
    here = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert named == here
