"""One net: trained, predicted, explained, and compared with a linear model of a volume."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from brain.scans import class_names, prepared
from ppl_med import storage
from ppl_med.analysis import exports, scoring, uncertainty
from ppl_med.data import Batches
from ppl_med.explain.attribution import attribute
from ppl_med.explain.quality import evidence_inside
from ppl_med.inference import (
    MeanFieldNormal,
    PointEstimate,
    VariationalOnlineNewton,
    fit,
    functions,
    predict,
)
from ppl_med.models import BayesianClassifier
from ppl_med.networks import AdditiveCNN
from ppl_med.weights import LearntNormal, Normal

RATE, DECAY = 3e-3, 1.0  # of the net that the posterior starts from
REFERENCE = 150  # healthy training scans that contributions are relative to
STEP, PRECISION_RATE = 0.05, 0.03  # of the natural-gradient steps


def mirrored(image: Tensor, generator: torch.Generator) -> Tensor:
    """Left and right exchanged in every other scan."""
    chosen = torch.rand(len(image), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None, None], image.flip(-1), image)


def train(arrays: dict[str, Any], options: Any, seed: int, place: Path) -> tuple[Any, Any]:
    """A point estimate first, then a mean-field posterior from there by natural gradients."""
    torch.manual_seed(seed)
    batches = Batches(
        prepared(arrays), batch_size=options.batch_size, shuffle=True, seed=seed, augment=mirrored
    )
    start_epochs, epochs = (
        max(1, round(steps / len(batches))) for steps in (options.start_steps, options.steps)
    )
    net, names = AdditiveCNN(arrays["image"].shape[2:], 1, 1), class_names(options)
    settings: dict[str, Any] = {
        "seed": seed, "schedule": "cosine", "device": options.device, "resume": options.resume,
    }  # fmt: skip
    model = BayesianClassifier(net, names, prior=Normal(1.0), likelihood="bernoulli")
    start = PointEstimate(model, use_prior=False)
    fit(
        model, start, batches, epochs=start_epochs, checkpoint=place / "start.pt",
        optimizer=lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=DECAY), **settings,
    )  # fmt: skip
    model = BayesianClassifier(net, names, prior=LearntNormal("weight"), likelihood="bernoulli")
    guide = MeanFieldNormal(model, init_scale=0.02, estimator="shared", start=start)
    history = fit(
        model, guide, batches, epochs=epochs, checkpoint=place / "checkpoint.pt",
        optimizer=VariationalOnlineNewton(STEP, precision_rate=PRECISION_RATE), **settings,
    )  # fmt: skip
    storage.save(history, place / "history.nc")
    return model, guide


def linear(train_arrays: dict[str, Any], test_arrays: dict[str, Any]) -> np.ndarray | None:
    """Probability of disease by a logistic regression on the volume of the region over the head."""
    if "volume_share" not in train_arrays:
        return None
    known, asked = (np.asarray(a["volume_share"])[:, None] for a in (train_arrays, test_arrays))
    scale = StandardScaler().fit(known)
    fitted = LogisticRegression().fit(scale.transform(known), train_arrays["label"])
    return fitted.predict_proba(scale.transform(asked))[:, 1]


def run(splits: dict[str, Any], options: Any, seed: int, place: Path) -> dict[str, Any]:
    """Train and judge; leaves the posterior, the maps and their NIfTI files in a folder."""
    place.mkdir(exist_ok=True, parents=True)
    test = splits["test"]
    model, guide = train(splits["train"], options, seed, place)
    batches = Batches(prepared(test), batch_size=100)
    tree = predict(
        model, guide, batches, draws=options.draws, seed=seed, device=options.device, progress=False
    )
    storage.save(tree, place / "posterior.nc")
    scores, parts = scoring.score(tree), uncertainty.variance(tree)
    p = tree["posterior/probs"].mean(("chain", "draw")).values[:, 1]
    figures: dict[str, Any] = {"net": judged(test["label"], p), "nll": float(scores["nll"])}
    roi = linear(splits["train"], test)
    if roi is not None:
        figures["roi"] = judged(test["label"], roi)
    if "label_probability" in test:
        figures["bayes"] = judged(test["label"], np.asarray(test["label_probability"]))
    figures["kl"] = float(xr.load_dataset(place / "history.nc")["kl"].values[-10:].mean())
    order = np.argsort(p)
    shown = [int(order[-1]), int(order[np.abs(p[order] - 0.5).argmin()]), int(order[0])]
    figures["cases"] = [
        {
            "id": str(test["id"][case]),
            "label": class_names(options)[int(test["label"][case])],
            "p": float(p[case]),
            "aleatoric": float(parts["aleatoric"][case, 1]),
            "epistemic": float(parts["epistemic"][case, 1]),
        }
        for case in shown
    ]
    ill = np.flatnonzero(np.asarray(test["label"]) == 1)
    ill = np.sort(ill[np.argsort(-p[ill])][: options.explained])
    images = torch.from_numpy(prepared(test)["image"][ill])
    device = next(iter(guide.parameters())).device
    healthy = np.flatnonzero(np.asarray(splits["train"]["label"]) == 0)[:REFERENCE]
    usual = torch.from_numpy(prepared(splits["train"])["image"][healthy]).to(device)
    chosen = functions(model, guide, draws=options.draws, seed=seed)
    settings: dict[str, Any] = {
        "method": "additive", "keep_draws": True, "case": [str(test["id"][case]) for case in ill],
    }  # fmt: skip
    maps = attribute(chosen, images.to(device), 1, reference=usual, **settings)
    table = exports.write_attribution(
        maps.isel(case=slice(3)), place / "maps", affine=np.asarray(test["affine"])[ill[:3]]
    )
    figures["files"] = [Path(path).name for path in table["path"]]
    if "mask" in test:
        figures |= located(maps, test, ill)
        alone = attribute(chosen, images.to(device), 1, **settings)
        figures["ratio_alone"] = located(alone, test, ill)["ratio"]
    storage.save(maps.drop_vars("attribution"), place / "maps.nc")
    figures["explained"] = ill.tolist()
    return figures


def located(maps: xr.Dataset, test: dict[str, Any], ill: np.ndarray) -> dict[str, Any]:
    """How much of the evidence within the brain lies in the region of the atrophy.

    Of cut-outs, which are brain throughout, of all of it. Background is left out on both sides: an
    image that is mostly background makes the share of any map within the brain look large.
    """
    dims = ("case", "depth", "row", "col")
    mask = xr.DataArray(test["mask"][ill], dims=dims).assign_coords(case=maps["case"])
    inside = test.get("brain_mask", np.ones_like(test["mask"]))[ill] | mask.values
    brain = xr.DataArray(inside, dims=dims).assign_coords(case=maps["case"])
    found = evidence_inside(maps["attribution"].where(brain, 0), mask)
    share = float((mask.sum(dims[1:]) / brain.sum(dims[1:])).mean())
    mass = [float(found[f"expected_mean_mass_share{end}"]) for end in ("", "_lower", "_upper")]
    return {
        "mass": mass[0],
        "share": share,
        "ratio": [one / share for one in mass],
        "sd_ratio": float(found["sd_mean_mass_share"]) / share,
        "top": float(found["mean_probability_top_inside"]),
    }


def judged(label: Any, p: np.ndarray) -> dict[str, float]:
    """AUC and accuracy of probabilities."""
    label = np.asarray(label)
    return {"auc": float(roc_auc_score(label, p)), "accuracy": float(((p > 0.5) == label).mean())}
