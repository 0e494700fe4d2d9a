"""Writing a report into its run folder, and refusing a void one."""

from __future__ import annotations

from pathlib import Path

from carefl_secure.errors import PrivacyError, RunError
from carefl_secure.report.build import build_report
from carefl_secure.report.registry import registry_entry
from carefl_secure.report.render.card import put_into_readme
from carefl_secure.report.render.page import html_page, markdown_section
from carefl_secure.report.run_record import read_run
from carefl_secure.report.schema import Report
from carefl_secure.run_folder import write_atomically


def write_report(run: Path) -> tuple[Report, list[Path]]:
    """Check a run, price it anew, and write its report; return it with the paths written.

    Written are page, data, card and registry entry under ``report/``, and our block in the
    adapter's model card.

    Raises
    ------
    RunError
        It is not a run folder, a file of it cannot be read, or nothing can be written.
    PrivacyError
        The plan or an event states something that cannot be priced.

    Guarantees
    ----------
    The same folder gives the same bytes, and a void report is written in place of any earlier one.
    """
    run = Path(run)
    report, bounds = build_report(read_run(run))
    readme = run / "adapter" / "README.md"
    files = {
        run / "report" / "report.html": html_page(report, bounds),
        run / "report" / "report.json": report.as_json() + "\n",
        run / "report" / "card.md": markdown_section(report),
        run / "report" / "registry.yaml": registry_entry(report),
        readme: put_into_readme(_text(readme), report),
    }
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text.encode())
    return report, list(files)


def refuse_void(report: Report) -> None:
    """Raise PrivacyError with the reasons if a report is void."""
    if report.verdict == "void":
        raise PrivacyError(
            "the report is void, so no privacy may be claimed for this run: " + "; ".join(report.reasons)
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read; correct or remove it: {error}") from error
