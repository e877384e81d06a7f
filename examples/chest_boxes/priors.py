"""What the prior of the class bias does, before training and after it."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from torch import nn

from chest_boxes.study import FEW, Study
from ppl_med import storage
from ppl_med.analysis import detection
from ppl_med.inference import MeanFieldNormal, fit
from ppl_med.weights import FanInNormal
from ppl_med.weights.layout import DETERMINISTIC

LEAST = 0.05  # probability of an object from which an anchor counts
PRIOR_DRAWS, FILMS = 40, 8


def _not_the_bias(name: str, module: nn.Module) -> bool:
    return name != "classes.bias" and not isinstance(module, DETERMINISTIC)


PRIORS: dict[str, dict[str, Any]] = {
    "normal around −log 99": {},
    "normal around 0": {"prior": FanInNormal()},
    "deterministic": {"where": _not_the_bias},
}


def anchors_of_prior(study: Study, name: str) -> np.ndarray:
    """Share of the anchors with an object, of every draw from the prior."""
    path = study.folder / f"prior-{list(PRIORS).index(name)}.nc"
    if not path.exists():
        model = study.detector(0, keep="anchors", **PRIORS[name])
        guide = MeanFieldNormal(model)
        films = study.held_out("films", study.options.seeds[0]).first(FILMS)
        number = 3 if study.options.smoke else PRIOR_DRAWS
        tree = study.predicted(model, guide, films, draws=1, prior_draws=number)
        exists = tree["prior"]["box_probs"].sum("class")
        share = (exists > LEAST).mean(("anchor", "case")).isel(chain=0)
        storage.save(xr.Dataset({"share": share}), path)
    return storage.load(path)["share"].values


def after_training(study: Study, name: str, seed: int) -> dict[str, float]:
    """ELBO and held-out NLL in nats a film, objects a film, and AP50."""
    path = study.folder / f"posterior-prior-{list(PRIORS).index(name)}-{seed}.nc"
    if not path.exists():
        model = study.detector(seed, **PRIORS[name])
        guide = MeanFieldNormal(model, init_scale=0.02, estimator="auto")
        history = fit(
            model, guide, study.training(FEW[1], seed), epochs=1 if study.options.smoke else 12,
            learning_rate=study.options.rate, schedule="cosine", seed=seed,
            device=study.options.device, progress=False,
        )  # fmt: skip
        tree = study.predicted(model, guide, study.held_out("films", seed), draws=8)
        last = {one: float(history[one].values.ravel()[-20:].mean()) for one in ("elbo", "nll")}
        tree.attrs |= last
        storage.save(tree, path)
    tree = storage.load(path)
    log = tree["log_likelihood"]["box"].values
    heldout = np.logaddexp.reduce(log, (0, 1)) - np.log(log.shape[0] * log.shape[1])
    objects = detection.objects(study.one_reader(tree))
    exists = detection.existence(objects)
    return {
        "elbo": float(tree.attrs["elbo"]),
        "nll": float(tree.attrs["nll"]),
        "test": -float(heldout.mean()),
        "objects": float(exists["expected_objects"]),
        "map": float(detection.average_precision(objects)["map_50"]),
    }


def compare(study: Study) -> dict[str, Any]:
    """Both, of every prior; after training by seed."""
    return {
        name: {
            "share": anchors_of_prior(study, name).tolist(),
            "trained": [after_training(study, name, seed) for seed in study.options.seeds],
        }
        for name in PRIORS
    }


def draw(found: dict[str, Any]) -> Any:
    """Anchors with an object under the prior, and objects a film after training."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for place, (name, one) in enumerate(found.items()):
        share = 100 * np.array(one["share"])
        spread = np.linspace(-0.15, 0.15, len(share))
        axes[0].plot(place + spread, share, "o", ms=4, alpha=0.6, label=name)
        number = [run["objects"] for run in one["trained"]]
        axes[1].plot(np.full(len(number), place), number, "o", label=name)
    axes[0].set_ylabel(f"anchors with p(object) > {LEAST}, %")
    axes[0].set_title("draws from the prior")
    axes[0].set_ylim(-3, 103)
    axes[1].set_ylabel("expected objects a film")
    axes[1].set_title("after training")
    most = max(run["objects"] for one in found.values() for run in one["trained"])
    axes[1].set_ylim(0, 1.2 * most + 0.01)
    for ax in axes:
        ax.set_xticks(range(len(found)), [name.replace(" around", "\naround") for name in found])
        ax.set_xlim(-0.5, len(found) - 0.5)
    return figure
