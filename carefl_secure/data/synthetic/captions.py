"""Captions for a drawn scene, generated from its factors with a set error rate.

They replace a captioning model on the embedded corpus only, and never say what the person feels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carefl_secure.data.synthetic.scene import GROUPS

_CONTEXT = ("posture", "setting", "prop", "light")


def describe(factors: npt.NDArray[np.int8], rng: np.random.Generator, error_rate: float = 0.0) -> str:
    """Describe posture, setting, prop and light of one scene.

    The result is such as ``"arms raised, beach, gift, bright"``. ``factors`` is one row of
    :attr:`carefl_secure.data.synthetic.scene.Scenes.factors`; ``error_rate`` is the chance with
    which each of the four facts is replaced by a random value of its group.
    """
    words = []
    for group, value in zip(GROUPS, factors, strict=True):
        if group not in _CONTEXT:
            continue
        wrong = rng.random() < error_rate
        word = GROUPS[group][int(rng.integers(len(GROUPS[group]))) if wrong else int(value)]
        words.append(f"arms {word}" if group == "posture" else word)
    return ", ".join(words)
