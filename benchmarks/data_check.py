"""Checks a corpus of 36,000 small files, as large as the public face corpora, and takes the time.

``python benchmarks/data_check.py [--quick] [--json]``. The bar: under a minute on two cores, every
file accounted for, and the planted duplicates found. The last line says how many bars hold; the
exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from carefl_secure.data.checks.check import check_corpus

BAR_SECONDS = 60.0
CLASSES = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
REPEATED = 50


def write(root: Path, count: int) -> None:
    """Write ``count`` face-sized JPEG files, the last ``REPEATED`` of them copies of the first."""
    rng = np.random.default_rng(0)
    for k in range(count):
        copy = k - (count - REPEATED)
        folder = root / ("test" if copy >= 0 else "train") / CLASSES[k % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{k:05d}.jpg"
        if copy >= 0:
            shutil.copy(root / "train" / CLASSES[copy % len(CLASSES)] / f"{copy:05d}.jpg", path)
            continue
        small = Image.fromarray(rng.integers(0, 256, (6, 6), np.uint8))
        small.resize((48, 48), Image.Resampling.BICUBIC).save(path, quality=90)


def main() -> int:
    """Run the benchmark and print its verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3,600 files")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    count = 3_600 if options.quick else 36_000
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root, count)
        begin, busy = time.perf_counter(), time.process_time()
        report = check_corpus(root)
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    records = sum(split.records for split in report.splits)
    shared = sum(one.exact for one in report.shared)
    bars = {
        f"{count:,} files in under {BAR_SECONDS * count / 36_000:g} s": seconds < BAR_SECONDS * count / 36_000,
        "every file is a record": records == count,
        f"the {REPEATED} files shared by train and test are found": shared == REPEATED,
    }
    if options.json:
        print(json.dumps({"files": count, "seconds": seconds, "cpu": busy, "shared": shared, "bars": bars}))
    else:
        print(f"{count:,} files checked in {seconds:.1f} s, {busy:.1f} s of them on a core")
    print(f"{sum(bars.values())} of {len(bars)} bars hold")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
