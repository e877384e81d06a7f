"""Ranks of truths among draws, and what is read off them: against normal draws of known faults."""

import numpy as np
import pytest
from scipy import stats

from ppl_med.testing.rank_verdicts import holm, places, verdicts

FALSE_ALARM = 1e-6


def test_ties_are_broken_at_random():
    rng = np.random.default_rng(0)
    ranks = np.array([places(np.zeros(1), np.zeros((9, 1)), rng)[1, 0] for _ in range(2000)])
    counts = np.bincount(ranks.astype(int), minlength=10)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    ("width", "shift", "shape"),
    [(0.5, 0.0, "∪"), (2.0, 0.0, "∩"), (1.0, 1.0, "draws too high"), (1.0, -1.0, "draws too low")],
)
def test_shapes_and_sizes_are_read_off_normal_draws(width, shift, shape):
    rng, num, draws = np.random.default_rng(0), 400, 49
    rows = []
    for _ in range(num):
        drawn = shift + width * rng.normal(size=(draws, 1))
        rows.append(places(rng.normal(size=1), drawn, rng))
    _, _, pit, residual, _, _ = np.stack(rows).transpose(1, 0, 2)
    found = verdicts(pit, residual, draws, ["x"], 0.95).isel(quantity=0)
    assert shape in str(found["shape"].values)
    assert abs(found["width_ratio"] - width) < 5.5 * found["width_ratio_error"]
    assert abs(found["bias"] + shift / width) < 0.1 + 5.5 * found["bias_error"]
    assert found["outside_band"] > 0.02 and found["distance"] > 0.1


def test_holm_is_that_of_its_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
