"""Files of weights: equal for equal weights, and read by safetensors itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from carefl_secure.model.weights import read_weights, write_weights

WEIGHTS = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(1, dtype=torch.bfloat16), "é": torch.zeros(0)}


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    # A map of safetensors has another order in each object and process.
    for i in range(12):
        write_weights(tmp_path / str(i), WEIGHTS if i % 2 else dict(reversed(WEIGHTS.items())))
    code = (
        "import sys, torch; from pathlib import Path; from carefl_secure.model.weights import *\n"
        "path = Path(sys.argv[1]); write_weights(path, read_weights(path))"
    )
    other = tmp_path / "other"
    other.write_bytes((tmp_path / "0").read_bytes())
    subprocess.run([sys.executable, "-c", code, other], check=True)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_file_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", WEIGHTS)
    for found in (load_file(tmp_path / "w"), read_weights(tmp_path / "w")):
        assert found.keys() == WEIGHTS.keys()
        assert all(
            torch.equal(found[name], WEIGHTS[name]) and found[name].dtype == WEIGHTS[name].dtype for name in found
        )
    assert int.from_bytes((tmp_path / "w").read_bytes()[:8], "little") % 8 == 0
