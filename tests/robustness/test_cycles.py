"""Fitting and predicting again and again in one process holds on to nothing."""

import gc
import resource
from pathlib import Path

import killed_runs
import numpy as np
import pytest

from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal, fit, predict

FIRST, CYCLES, MEGABYTE = 20, 200, 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.slow
def test_two_hundred_cycles_grow_by_less_than_five_megabytes() -> None:
    batches, sizes = Batches(killed_runs.cases(), batch_size=22), []
    for _ in range(FIRST + CYCLES):
        model = killed_runs.classifier()
        guide = MeanFieldNormal(model)
        fit(model, guide, batches, epochs=1, progress=False, device="cpu")
        predict(model, guide, batches, draws=4, progress=False, device="cpu")
        sizes.append(resident())
    early, late = (np.median(part) for part in (sizes[FIRST : FIRST + 10], sizes[-10:]))
    assert late - early < 5 * MEGABYTE, f"{(late - early) / MEGABYTE:.1f} MB in {CYCLES} cycles"
