"""Accuracy, calibration and uncertainty as images get worse, step by step (Ovadia et al., 2019).

Conformal sets are calibrated on clean validation cases, as they would be where nobody knows of the
corruption.
"""

import itertools
import warnings

import numpy as np
import xarray as xr

from ppl_med import storage
from ppl_med.analysis import conformal, ood, scoring, uncertainty
from ppl_med.data.shifts import corrupt
from unknown_inputs.sources import some
from unknown_inputs.study import Study

CORRUPTIONS = (
    "gaussian_noise", "gaussian_blur", "jpeg", "contrast_down", "brightness_up", "bias_field",
)  # fmt: skip
CASES, ALPHA = 120, 0.1
FIGURES = {
    "accuracy": ("Accuracy", "probability"),
    "ece": ("Calibration error (ECE)", "probability"),
    "nll": ("Negative log-likelihood", "nats"),
    "epistemic": ("Epistemic variance", "probability^2"),
    "aleatoric": ("Aleatoric variance", "probability^2"),
    "coverage": ("Coverage of 90 % sets (LAC)", "probability"),
    "called_novel": ("Called novel at .05", "probability"),
}


def curves(study: Study, guide: str, seed: int) -> xr.Dataset:
    """Figures of one run (corruption, severity), kept in its folder."""
    file = study.path(guide, seed) / "severity.nc"
    if file.exists():
        kept = storage.load(file)
        assert isinstance(kept, xr.Dataset)
        return kept
    model, program = study.trained(guide, seed)
    keep = tuple(f"feature:{layer}" for layer in study.source.layers)
    clean = {
        part: study.predicted(model, program, guide, seed, study.sets[part], keep=keep)
        for part in ("train", "val")
    }
    learnt = conformal.calibrate(clean["val"], alpha=ALPHA)
    reference = ood.fit_novelty(clean["train"], clean["val"])
    names, levels = CORRUPTIONS[: 2 if study.options.smoke else None], range(6)
    cases = some(study.sets["test"], CASES)
    values = {name: np.full((len(names), len(levels)), np.nan) for name in FIGURES}
    for (row, name), level in itertools.product(enumerate(names), levels):
        worse = cases | {"image": corrupt(cases["image"], name, level)}
        tree = study.predicted(model, program, guide, seed, worse, keep=keep)
        scores, parts = scoring.score(tree), uncertainty.summary(tree, mcse=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the shift is known here
            sets = conformal.predict_sets(learnt, tree)
        own = {
            "accuracy": scores["accuracy"],
            "ece": scores["ece"],
            "nll": scores["nll"],
            "epistemic": parts["epistemic"],
            "aleatoric": parts["aleatoric"],
            "coverage": sets["coverage"],
            "called_novel": (ood.novelty(tree, reference)["pvalue"] <= 0.05).mean(),
        }
        for key, value in own.items():
            values[key][row, level] = float(value)
    dims = ("corruption", "severity")
    result = xr.Dataset(coords={"corruption": list(names), "severity": list(levels)})
    for key, (title, unit) in FIGURES.items():
        result[key] = (dims, values[key], {"long_name": title, "units": unit})
    storage.save(result, file)
    return result


def over_seeds(cells: dict[tuple[str, int], xr.Dataset]) -> xr.Dataset:
    """Mean over seeds (guide, corruption, severity)."""
    guides = list(dict.fromkeys(guide for guide, _ in cells))
    parts = []
    for guide in guides:
        own = [one for (name, _), one in cells.items() if name == guide]
        mean = xr.concat(own, "seed").mean("seed", keep_attrs=True)
        parts.append(mean.expand_dims(guide=[guide]))
    return xr.concat(parts, "guide")
