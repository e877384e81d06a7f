"""Random numbers that depend on a seed and on what they are for, and on nothing drawn before."""

import numpy as np


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """A generator for a seed and a key: a part, a block of cases, an epoch, whatever it is for."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
