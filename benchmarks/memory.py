"""Memory and time of the vision features of 500 to 5,000 images: a first run, and a second that finds them on disk.

    python benchmarks/memory.py [--quick] [--json] [--plot docs/images/memory.svg]

JPEG files of 96 pixels a side in seven class folders, read as ``--data`` reads them, and the embedded model on one
thread. Each measurement is a process of its own: it opens the corpus, loads the model, encodes (or finds) the features
of all images, and reads every one of them once in batches of 64, as a round does. Memory is the most anonymous memory
of the process (``RssAnon`` of Linux, looked at every 5 ms) above what the loaded model takes; pages of files that the
system may drop at any time are not in it.

Bars: 5,000 images take at most 32 MB more than 500 (their features alone are 37 MB), in the first run and in the
second, and the second run takes at most a tenth of the time of the first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from _bench import Bar, Report, finish, say
from PIL import Image

from carefl_secure.data.open_corpus import open_corpus
from carefl_secure.data.records import BASIC
from carefl_secure.model.loader import load_base
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.progress import SILENT

SIDE, BATCH = 96, 64
FIRST, SECOND = "first", "second"


def anonymous() -> float:
    """Return the anonymous memory of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the system does not report RssAnon")


def draw(folder: Path, images: int) -> Path:
    """Write so many different images in class folders."""
    generator = np.random.default_rng(images)
    for i in range(images):
        path = folder / BASIC.labels[i % len(BASIC.labels)] / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rough = generator.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(rough).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def measure(corpus: Path, cache: Path) -> None:
    """Print seconds and MB of what one run does with the features of a corpus."""
    torch.set_num_threads(1)
    (images,) = open_corpus(corpus).values()
    base = load_base(quantization="none", feature_cache=cache, parallel_batches=1)
    before, over = anonymous(), threading.Event()
    most = [before]

    def watch() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.process_time()
    found = vision_features(base, images, SILENT)
    for start in range(0, len(found), BATCH):
        found[start : start + BATCH]
    took = time.process_time() - started
    over.set()
    watcher.join()
    print(f"{took:.3f} {most[0] - before:.2f}")


def plot(rows: list[dict[str, float | str]], path: Path) -> None:
    """Draw memory against images."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "memory", "font.size": 9, "axes.grid": True})
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for run, mark in ((FIRST, "o-"), (SECOND, "s--")):
        chosen = [row for row in rows if row["run"] == run]
        axes.plot([row["images"] for row in chosen], [row["MB"] for row in chosen], mark, label=f"{run} run")
    largest = max(float(row["images"]) for row in rows)
    axes.plot([0, largest], [0, largest * 16 * 128 * 4 / 1e6], "k:", label="the features alone")
    axes.set(xlabel="images", ylabel="MB above the loaded model", ylim=(0, None))
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def main() -> int:
    """Measure all sizes, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="500 and 1,500 images")
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    parser.add_argument("--plot", type=Path, help="SVG file to draw")
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        measure(*chosen.one)
        return 0
    sizes = (500, 1500) if chosen.quick else (500, 1000, 2000, 5000)
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for images in sizes:
            corpus = draw(Path(folder) / str(images), images)
            for run in (FIRST, SECOND):
                command = [sys.executable, __file__, "--one", str(corpus), f"{folder}/cache-{images}"]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                seconds, megabytes = map(float, done.stdout.split()[-2:])
                rows.append({"images": images, "run": run, "CPU s": seconds, "MB": megabytes})
                say(f"{images} images, {run} run: {seconds:.2f} s, {megabytes:.1f} MB")
    report = Report("The vision features of a corpus: memory above the loaded model, and time", list(rows))
    at = {(row["images"], row["run"]): row for row in rows}
    for run in (FIRST, SECOND):
        more = float(at[sizes[-1], run]["MB"]) - float(at[sizes[0], run]["MB"])
        report.bars.append(Bar(f"{run} run: MB more for {sizes[-1]:,} images than for {sizes[0]}", more, 32, False))
    ratio = float(at[sizes[-1], SECOND]["CPU s"]) / float(at[sizes[-1], FIRST]["CPU s"])
    report.bars.append(Bar("time of the second run over the first", ratio, 0.1, False))
    if chosen.plot:
        plot(rows, chosen.plot)
    return finish(report, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
