"""Training in bfloat16 goes where training in float32 goes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal, fit
from ppl_med.models import BayesianClassifier

pytestmark = pytest.mark.filterwarnings("ignore:precision='bfloat16' on a device without")


def cases() -> Batches:
    random = np.random.default_rng(0)
    label = np.arange(60) % 2
    image = random.normal(size=(60, 1, 4, 4)).astype(np.float32) + label[:, None, None, None]
    return Batches({"image": image, "label": label}, batch_size=20)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("where", [None, "last_layer"])
@pytest.mark.parametrize("outside", [False, True])
def test_bfloat16_learns_what_float32_learns(where: Any, outside: bool) -> None:
    """Within the rounding of bfloat16, 3 significant digits; with autocast around it or not.

    Autocast keeps its copies of parameters until the outermost context ends: without a new copy in
    every step, layers without random weights would never see what they have learnt.
    """
    last = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = BayesianClassifier(net(), ["a", "b"], where=where)
        with torch.autocast("cpu", torch.bfloat16, enabled=outside):
            history = fit(
                model, MeanFieldNormal(model), cases(), epochs=20, learning_rate=0.02,
                precision=precision, progress=False,
            )  # fmt: skip
        values = history["nll"].values
        last[precision] = values[-6:].mean()
        assert last[precision] < 0.7 * values[:3].mean()
    assert last["bfloat16"] == pytest.approx(last["float32"], rel=0.05)
