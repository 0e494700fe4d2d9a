"""Every attack of the audit on four builds: no protection, secure sum only, epsilon 8, epsilon 2.

    python benchmarks/audits.py [--quick] [--json] [--seed N] [--only NAME ...] [--write FILE]

Everything runs on the embedded model and the embedded corpus. ``--write docs/audits.md`` puts the
tables between that page's markers. The last line says how many bars hold; exit code 1 where one
is missed. Some ten minutes on one core, about two with ``--quick``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from _bench import Report, finish, say

from _audit_tables import QUICK, TABLES, Lab, Sizes  # isort: skip

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def main() -> int:
    """Run the tables, print or write them, and judge the bars."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", action="store_true", help="one JSON object, no tables")
    parser.add_argument("--seed", type=int, default=0, help="of records, coins and settings")
    parser.add_argument("--only", nargs="+", choices=TABLES, help="some of the attacks")
    parser.add_argument("--write", type=Path, help="page to put the tables into")
    chosen = parser.parse_args()
    started = time.monotonic()
    lab = Lab(QUICK if chosen.quick else Sizes(), chosen.seed)
    tables = []
    for name in chosen.only or TABLES:
        begun = time.monotonic()
        tables.append(TABLES[name](lab))
        say(f"{name}: {time.monotonic() - begun:.0f} s")
    bars = [bar for table in tables for bar in table.bars]
    report = Report("Audits on four builds", bars=bars)
    for table in tables:
        report.rows += [{"attack": table.name, "row": a, "cells": list(b)} for a, b in table.rows]
    text = "\n\n".join(table.markdown() for table in tables)
    held = f"{sum(bar.holds for bar in bars)} of {len(bars)} bars hold"
    command = " ".join(["python benchmarks/audits.py", *(["--quick"] if chosen.quick else [])])
    minutes = (time.monotonic() - started) / 60
    if chosen.write is not None:
        page = chosen.write.read_text(encoding="utf-8")
        head, _, rest = page.partition(BEGIN)
        foot = rest.partition(END)[2]
        shown = f"```\n{command} --seed {chosen.seed}\n```\n\n{minutes:.0f} minutes; {held}."
        chosen.write.write_text(f"{head}{BEGIN}\n{shown}\n\n{text}\n{END}{foot}", encoding="utf-8")
    if chosen.json:
        return finish(report, True)
    sys.stdout.write(text + "\n\n")
    report.rows = []
    return finish(report, False)


if __name__ == "__main__":
    sys.exit(main())
