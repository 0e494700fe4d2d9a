"""Randomness that an adversary cannot guess: key streams, Gaussian and Skellam samplers."""

from carefl_secure.noise.gaussian import gaussian, uniform
from carefl_secure.noise.keystream import KEY_BYTES, KeyStream, add_masks
from carefl_secure.noise.skellam import SkellamSampler
from carefl_secure.noise.source import DeterministicKeySource, KeySource, SystemKeySource

__all__ = [
    "KEY_BYTES",
    "DeterministicKeySource",
    "KeySource",
    "KeyStream",
    "SkellamSampler",
    "SystemKeySource",
    "add_masks",
    "gaussian",
    "uniform",
]
