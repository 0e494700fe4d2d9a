"""Every tensor of a step is on the model's device, and a device that is not there is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from carefl_secure.errors import ConfigError
from carefl_secure.hub import find_device

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("trial", ["step", "checkpointed step", "score", "encode", "generate"])
def test_no_step_mixes_devices(trial: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fake_device", trial],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("same device throughout\n"), done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no CUDA devices.*auto or cpu"):
        find_device(name)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
