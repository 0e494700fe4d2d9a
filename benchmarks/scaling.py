"""Time and memory of one round as the number of clients grows: the real protocol, no model.

    python benchmarks/scaling.py [--quick] [--json] [--clients N ...] [--dimension D]
                                 [--write docs/scaling.md] [--plot docs/images/scaling.svg]

Ledgers, encoding, noise, masks, signatures and the committee's part are those of a real run; all
parties take turns in one process, a fresh one for each size. ``--write`` puts table and arithmetic
between the markers of a page. The last line says how many bars hold; exit code 1 where one is
missed. About three minutes on one core, seconds with ``--quick``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _bench import Bar, Report, finish, say

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TARGET = 100_000
COMPLETE = 100  # clients up to which all pairs of peers are masked: that work grows with n squared
ROOM = 64.0  # MB that a round may take more for 100 times the clients

Row = Mapping[str, Any]


def measure(clients: int, dimension: int, how: str) -> dict[str, Any]:
    """Run one round in this process; every figure is of this process alone."""
    import numpy as np
    from numpy.typing import NDArray

    from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
    from carefl_secure.federation.plan.cohort import AggregationConfig
    from carefl_secure.federation.plan.staged import Stage
    from carefl_secure.federation.run_spec import RunSpec
    from carefl_secure.federation.server.optimizers import FedAvg
    from carefl_secure.federation.server.run import run_federation
    from carefl_secure.run_folder import RunFolder

    class Task:
        """Records whose gradient is one unit vector: no model, all of the protocol."""

        records = 10

        def __init__(self) -> None:
            self.dimension = dimension

        def clipped_sum(
            self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
        ) -> NDArray[np.float64]:
            """Return one entry per record."""
            total = np.zeros(dimension)
            total[0] = len(indices)
            return total

    began = time.monotonic()
    plan = plan_run(
        PlanRequest(
            unit="record",
            dimension=dimension,
            clients=clients,
            rounds=1,
            public_records=10 * clients,
            sample_rate=0.5,
            clipping_norm=1.0,
            delta=1e-6,
            target_epsilon=8.0,
        )
    )
    planned = time.monotonic() - began
    before, peak_before = time.process_time(), _peak()
    with tempfile.TemporaryDirectory() as root:
        spec = RunSpec(
            stage=Stage.only(plan),
            tasks=lambda: [Task() for _ in range(clients)],
            folder=RunFolder.create(Path(root), ""),
            base_hash=bytes(32),
            aggregation=AggregationConfig(protocol="pairwise" if how == "pairwise" else "committee"),
        )
        result = run_federation(spec, np.zeros(dimension, np.float32), FedAvg(1.0))
    used = time.process_time() - before
    (row,) = result.rows
    return {
        "aggregation": how,
        "clients": clients,
        "parameters": dimension,
        "plan_s": planned,
        "round_s": float(row["seconds"]),
        "cpu_s": used,
        "cpu_ms_per_client": 1000 * used / clients,
        "MB_per_client": float(row["bytes_up"]) / 1e6,
        "peak_MB_before": peak_before,
        "peak_MB": _peak(),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh(clients: int, dimension: int, how: str) -> dict[str, Any]:
    """Measure in a process of its own, so that no size inherits the peak of another."""
    words = [sys.executable, __file__, "--one", how, "--clients", str(clients)]
    words += ["--dimension", str(dimension)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    say(f"{how}, {clients} clients: {found['round_s']:.1f} s, {found['peak_MB']:.0f} MB")
    return found


def of(rows: Sequence[Row], how: str) -> list[Row]:
    """Return the rows of one way of summing."""
    return [row for row in rows if row["aggregation"] == how]


def slope(rows: Sequence[Row], name: str) -> float:
    """Return the exponent p of ``value ~ clients ** p`` between the smallest and the largest."""
    first, last = rows[0], rows[-1]
    return math.log(last[name] / first[name]) / math.log(last["clients"] / first["clients"])


def judge(rows: Sequence[Row]) -> list[Bar]:
    """Return the claims: memory does not grow with the clients, and work no faster than they."""
    found = []
    for how in dict.fromkeys(row["aggregation"] for row in rows):
        mine = of(rows, how)
        if len(mine) > 1:
            sizes = f"from {mine[0]['clients']} to {mine[-1]['clients']} clients, {how}"
            more = mine[-1]["peak_MB"] - mine[0]["peak_MB"]
            found.append(Bar(f"MB more at the peak {sizes}", more, ROOM, at_least=False))
            if how == "committee":
                power = slope(mine, "cpu_s")
                found.append(Bar(f"power of the CPU time {sizes}", power, 1.1, at_least=False))
    return found


def markdown(rows: Sequence[Row], image: str) -> str:
    """Write table, picture and arithmetic."""
    heads = ["way", "clients", "planning s", "round s (wall)", "CPU s", "CPU ms per client"]
    heads += ["MB sent per client", "peak memory MB before the round", "peak memory MB"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += [
        f"| {r['aggregation']} | {r['clients']:,} | {r['plan_s']:.1f} | {r['round_s']:.1f} "
        f"| {r['cpu_s']:.1f} | {r['cpu_ms_per_client']:.0f} | {r['MB_per_client']:.2f} "
        f"| {r['peak_MB_before']:.0f} | {r['peak_MB']:.0f} |"
        for r in rows
    ]
    parts = ["\n".join(lines), f"![Time and memory of a round against its clients]({image})"]
    near, mine = of(rows, "pairwise"), of(rows, "committee")
    if len(near) > 1:
        parts.append(among_peers(near))
    if len(mine) > 1:
        parts.append(arithmetic(mine))
    return "\n\n".join(parts)


def among_peers(rows: Sequence[Row]) -> str:
    """Say what one more neighbour costs, which is what a sparse graph of masks would save."""
    first, last = rows[0], rows[-1]
    pairs = last["clients"] - first["clients"]
    each = (last["cpu_ms_per_client"] - first["cpu_ms_per_client"]) / pairs
    return (
        "Among peers every pair of clients shares a mask: a client's work grows with all others, "
        f"by {each:.2f} ms of CPU for each further neighbour, and so the whole round with the "
        f"square of the clients. It is measured up to {last['clients']} clients."
    )


def arithmetic(rows: Sequence[Row]) -> str:
    """Carry the rows of the committee on to ``TARGET`` clients."""
    first, last = rows[0], rows[-1]
    small, large = f"{first['clients']:,}", f"{last['clients']:,}"
    target, each = f"{TARGET:,}", last["MB_per_client"]
    cpu = last["cpu_s"] * TARGET / last["clients"]
    more = last["peak_MB"] - first["peak_MB"]
    growth = max(0.0, more / (last["clients"] - first["clients"]))
    peak = last["peak_MB"] + growth * (TARGET - last["clients"])
    gigabytes = TARGET * each / 1000
    work = (
        f"grows with power {slope(rows, 'cpu_s'):.2f} of the clients: "
        f"{first['cpu_ms_per_client']:.0f} ms of CPU for each of {small}, "
        f"{last['cpu_ms_per_client']:.0f} ms for each of {large}. That is {cpu:,.0f} s for "
        f"{target}, all parties in one process; across sites the clients spend their part of it "
        "at the same time."
    )
    memory = (
        f"grows with power {slope(rows, 'peak_MB'):.2f}: {more:+.0f} MB from {small} to {large} "
        f"clients, {1000 * growth:.0f} kB for each. What grows is no vector but keys, signatures "
        f"and ledgers, of all parties in this one process: {peak / 1000:.1f} GB for {target}."
    )
    uploads = (
        f"are {each:.2f} MB each at {large} clients, {gigabytes:,.0f} GB a round for {target}; a "
        f"link of 10 Gbit/s carries that in {gigabytes * 0.8:,.0f} s."
    )
    disk = (
        "before a committee the server keeps a round's uploads on the disk of the run folder "
        "until the members have opened their envelopes, for a client that they leave out is taken "
        f"off the sum again: {gigabytes:,.0f} GB for {target}. Among peers it keeps none."
    )
    points = [f"**Work** {work}", f"**Memory** {memory}", f"**Uploads** {uploads}"]
    points.append(f"**Disk**: {disk}")
    head = (
        f"## Arithmetic to {target} clients\n\nThis is arithmetic from the table, not a "
        "measurement; `federation.clients` ends at 10,000."
    )
    return head + "\n\n" + "\n".join(f"- {point}" for point in points)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw time and memory against clients, both axes logarithmic; the same rows, the same file."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "scaling", "font.size": 9, "axes.grid": True})
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for how, mark, colour in (("committee", "o", "#00796b"), ("pairwise", "s", "#a0522d")):
        mine = of(rows, how)
        if not mine:
            continue
        clients = [row["clients"] for row in mine]
        for axes, name, what in ((left, "cpu_s", "CPU s"), (right, "peak_MB", "peak MB")):
            power = f", power {slope(mine, name):.2f}" if len(mine) > 1 else ""
            values = [row[name] for row in mine]
            axes.plot(clients, values, mark + "-", color=colour, label=f"{how}: {what}{power}")
        wall = [row["round_s"] for row in mine]
        left.plot(clients, wall, mark + ":", color=colour, alpha=0.6, label=f"{how}: wall s")
    left.set(title="time of a round, all parties", xlabel="clients", ylabel="seconds")
    right.set(title="memory of the process at its peak", xlabel="clients", ylabel="MB")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    most = max(row["peak_MB"] for row in rows)
    right.set_ylim(10, max(10_000, 2 * most))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def put(page: Path, text: str) -> None:
    """Replace what stands between the markers of a page."""
    whole = page.read_text(encoding="utf-8")
    head, begin, rest = whole.partition(BEGIN)
    _, end, foot = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} lacks the lines {BEGIN} and {END}; write them where it goes")
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{foot}", encoding="utf-8")


def main() -> int:
    """Measure every size, print or write the table, and judge the bars."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    parser.add_argument("--clients", type=int, nargs="+", help="sizes of the committee's rounds")
    parser.add_argument("--dimension", type=int, help="trainable values of the adapter")
    parser.add_argument("--write", type=Path, help="page to put table and arithmetic into")
    parser.add_argument("--plot", type=Path, help="SVG file to draw")
    parser.add_argument("--one", choices=("committee", "pairwise"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    sizes = words.clients or ([10, 30, 100] if words.quick else [10, 100, 1000])
    dimension = words.dimension or (10_000 if words.quick else 1_000_000)
    if words.one:
        sys.stdout.write(json.dumps(measure(sizes[0], dimension, words.one)) + "\n")
        return 0
    rows = [fresh(clients, dimension, "committee") for clients in sizes]
    rows += [fresh(clients, dimension, "pairwise") for clients in sizes if clients <= COMPLETE]
    if words.plot is not None:
        draw(rows, words.plot)
    if words.write is not None:
        image = words.plot or Path("docs/images/scaling.svg")
        put(words.write, markdown(rows, os.path.relpath(image, words.write.parent)))
    report = Report("One round, all parties in one process", rows=rows, bars=judge(rows))
    return finish(report, words.json)


if __name__ == "__main__":
    sys.exit(main())
