"""Runs of active learning: which there are, and what is measured at every step."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from active_digits.digits import NETS, Digits
from active_digits.methods import Method
from ppl_med import storage
from ppl_med.analysis import scoring
from ppl_med.inference import active_learn, cooldown, load, predict

LEVEL = 0.9
"""Probability that a predictive set is to hold."""


def run(
    digits: Digits, method: Method, seed: int, folder: Path, options: Any, budget: int
) -> xr.DataTree:
    """Buy labels up to the budget, or read what was bought.

    A random batch is as good in one purchase as in ten, so random labels come 100 at a time.
    """
    size = options.random_size if method.rule == "random" else options.size
    with warnings.catch_warnings():
        # Of dropout fit reports a quasi-KL, whose size means nothing.
        warnings.filterwarnings("ignore", "the KL is")
        return active_learn(
            NETS[method.net],
            digits.pool,
            digits.label,
            budget=budget,
            test=digits.test,
            acquisition=method.rule,
            acquisition_options=method.options,
            start=20,
            size=size,
            draws=options.draws if method.net == "dropout" else 1,
            subsample=None if len(digits.label) <= 3000 else options.subsample,
            figures=figures,
            fit_options=lambda number: training(number, options.steps),
            folder=folder,
            resume=True,
            seed=seed,
            device=options.device,
            progress=False,
        )


def shown_posterior(digits: Digits, method: Method, folder: Path, options: Any) -> None:
    """Predict the test part by the last net of a method's first seed, and keep what it says."""
    place = folder / "digits" / method.name / f"seed-{options.seed[0]}"
    last = max(place.glob("step-*.pt"), key=lambda path: int(path.stem.split("-")[1]))
    model, guide = NETS[method.net]()
    load(last, model, guide, example=next(iter(digits.test)))
    draws = options.draws if method.net == "dropout" else 1
    tree = predict(model, guide, digits.test, draws=draws, device=options.device, progress=False)
    storage.save(tree, folder / "posterior.nc")


def training(number: int, steps: int) -> dict[str, Any]:
    """Arguments of ``fit``: steps of 32 digits that grow with the labels once these are many."""
    epochs = round(max(steps, 0.75 * number) / np.ceil(number / 32))
    return {"epochs": max(1, int(epochs)), "learning_rate": 3e-3, "schedule": cooldown()}


def figures(tree: xr.DataTree) -> xr.Dataset:
    """Scores of the test part, and whether sets of probability 90 % hold the digit."""
    found = scoring.score(tree)[["accuracy", "nll", "ece"]]
    mean = tree["posterior/probs"].mean(("chain", "draw")).values
    order = np.argsort(-mean, axis=1)
    ranked = np.take_along_axis(mean, order, 1)
    inside = ranked.cumsum(1) - ranked < LEVEL  # the first classes that reach the level
    label = tree["observed_data/label"].values
    place = (order == label[:, None]).argmax(1)
    covered = np.take_along_axis(inside, place[:, None], 1)
    return found.assign(coverage=covered.mean(), set_size=inside.sum(1).mean())
