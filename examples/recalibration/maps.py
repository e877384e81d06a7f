"""Recalibration maps, and which of them to take."""

import numpy as np
import xarray as xr

from ppl_med.analysis import calibration
from recalibration.study import Study

MAPS = ("none", "temperature", "vector", "isotonic", "beta", "histogram")
ELIGIBLE = ("temperature", "vector", "beta")  # the others can give 0, and an infinite NLL
FOLDS = 5


def recalibrated(name: str, learnt_on: xr.DataTree, tree: xr.DataTree) -> xr.DataTree:
    """The tree after a map that was learnt on other cases."""
    return tree if name == "none" else calibration.apply(calibration.fit(learnt_on, name), tree)


def some_cases(tree: xr.DataTree, chosen: np.ndarray) -> xr.DataTree:
    """Probabilities and labels of some cases."""
    groups = {
        f"/{name}": tree[name].to_dataset()[variables].isel(case=chosen)
        for name, variables in (("posterior", ["probs"]), ("observed_data", ["label"]))
    }
    return xr.DataTree.from_dict(groups)


def cross_validated_nll(name: str, tree: xr.DataTree, folds: int = FOLDS) -> float:
    """NLL of a map on cases it was not learnt on, all from the recalibration half; nats per case.

    Infinite where some fold has no best parameters.
    """
    fold = np.random.default_rng(0).permutation(tree["posterior"].sizes["case"]) % folds
    total = 0.0
    for held_out in range(folds):
        rest, own = (
            some_cases(tree, np.flatnonzero(part)) for part in (fold != held_out, fold == held_out)
        )
        try:
            total += float(per_case(recalibrated(name, rest, own))["nll"].sum())
        except ValueError:
            return np.inf
    return total / len(fold)


def per_case(tree: xr.DataTree) -> xr.Dataset:
    """What every case adds to accuracy, NLL, Brier score and calibration error of the mixture."""
    probs = tree["posterior/probs"].mean(("chain", "draw"))
    label = tree["observed_data/label"]
    truth = label == xr.DataArray(np.arange(probs.sizes["class"]), dims="class")
    with np.errstate(divide="ignore"):
        nll = -np.log(probs.where(truth.values).sum("class"))
    return xr.Dataset(
        {
            "accuracy": (probs.argmax("class") == label).astype(float),
            "nll": nll,
            "brier": ((probs - truth.values) ** 2).sum("class"),
            "confidence": probs.max("class"),
        }
    )


def choose(study: Study) -> dict[str, str]:
    """The map of every guide with the smallest cross-validated NLL, and the best Bayesian guide.

    Among maps that never give a class 0.
    """
    options = study.options
    folds = 2 if options.smoke else FOLDS
    scores = {
        guide: {
            name: float(
                np.mean(
                    [
                        cross_validated_nll(name, study.tree(guide, seed, "recalibration"), folds)
                        for seed in options.seed
                    ]
                )
            )
            for name in ELIGIBLE
        }
        for guide in options.guide
    }
    chosen = {guide: min(found, key=lambda n: found[n]) for guide, found in scores.items()}
    for guide, name in chosen.items():
        print(f"{guide}: {name}, cross-validated NLL {scores[guide][name]:.4f}")
    bayesian = {g: scores[g][name] for g, name in chosen.items() if g != "frequentist"}
    if bayesian:
        chosen["best"] = min(bayesian, key=lambda g: bayesian[g])
    return chosen
