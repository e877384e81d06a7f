"""Labels that mean nothing, learnt all the same: what a split by slice does."""

from typing import Any

import numpy as np
import torch

from ppl_med.data import Batches, apply_split, brains, slices_of, split_patients
from ppl_med.inference import PointEstimate, fit, predict
from ppl_med.models import BayesianClassifier
from ppl_med.networks import AdditiveCNN

AT = tuple((np.arange(19, 29) / 48 + 0.001).tolist())  # neighbouring slices, shares of the axis


def leak(people: int, epochs: int, seed: int, device: str | None) -> dict[str, float]:
    """Accuracy on slices held out one by one, and on slices of people held out whole.

    Every person gets a label by the toss of a coin, so that no scan tells it.
    """
    scans = brains(people, size=(48, 28, 24), seed=100 + seed)
    scans["label"] = np.random.default_rng(seed).permutation(np.arange(people) % 2)
    kept = {name: scans[name] for name in ("image", "label", "patient", "id")}
    slices = slices_of(kept, "depth", AT)
    # What `check_splits(parts, "patient")` refuses, for once on purpose:
    held = np.random.default_rng(seed).random(len(slices["id"])) < 0.3
    by_slice = {
        name: {key: values[rows] for key, values in slices.items()}
        for name, rows in (("train", ~held), ("test", held))
    }
    parts = split_patients(
        scans["patient"], {"train": 0.7, "test": 0.3}, seed=seed, stratify=scans["label"]
    )
    by_person = apply_split(slices, parts)
    return {
        name: _accuracy(splits, epochs, seed, device)
        for name, splits in (("by slice", by_slice), ("by person", by_person))
    }


def _accuracy(splits: dict[str, Any], epochs: int, seed: int, device: str | None) -> float:
    torch.manual_seed(seed)
    net = AdditiveCNN(splits["train"]["image"].shape[2:], channels=(16,), strides=(2,))
    model = BayesianClassifier(net, ["heads", "tails"])
    guide = PointEstimate(model, use_prior=False)
    batches = Batches(splits["train"], batch_size=32, shuffle=True, seed=seed)
    fit(
        model, guide, batches, epochs=epochs, learning_rate=3e-3, seed=seed, device=device,
        progress=False,
    )  # fmt: skip
    tree = predict(model, guide, Batches(splits["test"]), draws=1, device=device, progress=False)
    called = tree["posterior/probs"].values[0, 0].argmax(-1)
    return float((called == splits["test"]["label"]).mean())
