"""The ways of reading another laboratory's pictures, and the figures of each."""

from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import entropy

from ppl_med import storage
from ppl_med.analysis import scoring
from ppl_med.analysis.statistics import binning
from ppl_med.data import symmetries
from ppl_med.data.readers.wbc_seg import CLASS_NAMES
from ppl_med.inference import predict
from ppl_med.inference.adaptation import Beta, adapt, minimise_disagreement, minimise_entropy

READINGS = (
    "source", "batch", "batch, sorted", "batch of 1", "domain", "prior cases", "share, prior",
    "share, posterior", "TENT", "TENT, sorted", "TENT, braked", "mirrors",
)  # fmt: skip
EVIDENCE = 0.3  # observations a case counts as; chosen on the validation part
RATE, EPOCHS = 0.3, 5  # of the descents; likewise
VIEWS = symmetries(2)
COLLAPSE_RATE, STEPS = 300.0, (0, 1, 2, 4)  # of the curve, far beyond what helps
BRAKES: dict[str, dict[str, Any]] = {
    "free": {"most_entropy": None, "guard": 0.0},
    "filter": {"guard": 0.0},
    "filter and guard": {"guard": 0.9},
}
SHARES = (0.0, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0)
MAPS = ("image", "mask")
_ONE_NET = ("point", "ensemble")  # a draw of which is as the next, but for the share


def read(
    reading: str,
    model: Any,
    guide: Any,
    kind: str,
    cases: dict[str, Any],
    batches: Any,
    options: Any,
    seed: int,
) -> xr.DataTree | None:
    """The tree of one reading; None where it is left out or refused."""
    whole = batches(cases, batch_size=len(cases["id"]))
    by_nucleus = np.argsort((cases["mask"] == CLASS_NAMES.index("nucleus")).mean((1, 2)))
    mixed = np.random.default_rng(seed).permutation(len(by_nucleus))
    order = by_nucleus if reading.endswith("sorted") else mixed
    few = batches({name: values[order] for name, values in cases.items()})
    draws = 1 if kind in _ONE_NET else options.draws
    settings: dict[str, Any] = {"seed": seed, "device": options.device, "progress": False}
    method = reading.removesuffix(", sorted")
    if method == "source":
        pass
    elif method in ("batch", "batch of 1"):
        model, guide = adapt(model, guide, few, statistics="batch", draws=draws, **settings)
    elif method == "domain":
        model, guide = adapt(model, guide, whole, draws=draws, **settings)
    elif method == "prior cases":
        model, guide = adapt(model, guide, whole, draws=draws, prior_cases=whole.num_cases,
                             **settings)  # fmt: skip
    elif method == "share, posterior" and kind not in _ONE_NET:
        return None  # a grid for every draw of the weights: too long here
    elif method.startswith("share"):
        draws = options.draws // len(getattr(guide, "members", [0]))
        evidence = EVIDENCE if method.endswith("posterior") else 0.0
        model, guide = adapt(model, guide, whole, draws=draws, source_share=Beta(),
                             evidence=evidence, views=VIEWS, **settings)  # fmt: skip
    elif kind != "point":
        return None  # descents, for every draw of the weights: likewise
    elif method == "mirrors":
        model, guide, _ = minimise_disagreement(
            model, guide, few, views=VIEWS, learning_rate=RATE, epochs=EPOCHS, draws=draws,
            **settings,
        )  # fmt: skip
    else:
        brakes = {} if "braked" in method else {"most_entropy": None, "guard": 0.0}
        model, guide, _ = minimise_entropy(
            model, guide, few, learning_rate=RATE, epochs=EPOCHS, draws=draws, **brakes, **settings
        )
    shown = few if method == "batch" else whole
    if method == "batch of 1":
        try:
            predict(model, guide, batches(cases, batch_size=1), draws=draws, **settings)
        except ValueError as refusal:
            print(f"batch of 1: {refusal}")
            return None
        raise AssertionError("a batch of one case was not refused")
    return predict(model, guide, shown, draws=draws, **settings)


def measure(tree: xr.DataTree, ids: Any) -> xr.Dataset:
    """Dice and NLL of every case under the mean of the draws, and the calibration error.

    Args:
        tree: Of ``predict``, in any order of the cases.
        ids: Their ids in the order wanted.
    """
    posterior = tree["posterior"].to_dataset()
    mixture = xr.DataTree.from_dict({
        "posterior": posterior[["probs"]].mean(("chain", "draw")).expand_dims(chain=1, draw=1),
        "observed_data": tree["observed_data"].to_dataset(),
    })  # fmt: skip
    overlap = scoring.overlap(mixture, resamples=0)
    scores = scoring.entry_scores(mixture)
    right, confidence = (scores[name].astype(np.float64) for name in ("correct", "confidence"))
    result = xr.Dataset({
        "dice": overlap["dice"].sel(case=ids),
        "nll": scores["nll"].mean(("row", "col")).sel(case=ids),
        "ece": binning.calibration_error(right, confidence, bins=15),
    })  # fmt: skip
    share = posterior.get("source_share")
    result["source_share"] = np.nan if share is None else float(share.mean())
    return result.drop_attrs()


def tent_curve(study: Any, laboratory: str) -> xr.Dataset:
    """What TENT does to the point estimate of the first seed, pass by pass, free and braked."""
    path = study.folder / f"tent-{laboratory}.nc"
    if path.exists():
        return storage.load(path)
    seed = study.options.seed[0]
    model, guide = study.trained("point", seed)
    cases = study.cases(laboratory)
    few = study.batches(cases)
    settings: dict[str, Any] = {"seed": seed, "device": study.options.device, "progress": False}
    parts = []
    steps = STEPS[:3] if study.options.smoke else STEPS
    for brakes in BRAKES.values():
        rows = []
        for epochs in steps:
            if epochs:
                *pair, history = minimise_entropy(
                    model, guide, few, learning_rate=COLLAPSE_RATE, epochs=epochs, draws=1,
                    **brakes, **settings,
                )  # fmt: skip
            else:
                pair, history = list(adapt(model, guide, few, draws=1, **settings)), None
            figures = measure(predict(*pair, few, draws=1, **settings), cases["id"])
            rows.append(figures[["dice"]].mean("case"))
        one = xr.concat(rows, xr.Variable("epoch", list(steps)))
        parts.append(one.assign(
            history[["entropy", "marginal_entropy", "restored"]].isel(chain=0, draw=0)
        ))  # fmt: skip
    result = xr.concat(parts, xr.Variable("brakes", list(BRAKES))).drop_attrs()
    storage.save(result, path)
    return result


def share_grid(study: Any, laboratory: str) -> xr.Dataset:
    """Validation cases under fixed shares of the source: Dice, NLL, and what tells without labels.

    Of the point estimate of the first seed. ``between`` is what predictions tell of the class from
    place to place, ``within`` by the view alone, in nats.
    """
    path = study.folder / f"shares-{laboratory}.nc"
    if path.exists():
        return storage.load(path)
    seed = study.options.seed[0]
    model, guide = study.trained("point", seed)
    cases = study.cases(laboratory, "val")
    settings: dict[str, Any] = {"seed": seed, "device": study.options.device, "progress": False}
    views = [
        study.batches(
            cases | {name: np.ascontiguousarray(np.flip(cases[name], axes)) for name in MAPS},
            batch_size=len(cases["id"]),
        )
        for axes in ((), (-1,))
    ]
    rows = []
    for share in SHARES:
        pair: Any = model, guide
        if share < 1:
            number = len(cases["id"]) * share / (1 - share)
            pair = adapt(*pair, views[0], prior_cases=number or None, draws=1, **settings)
        trees = [predict(*pair, view, draws=1, **settings) for view in views]
        probs = np.stack([tree["posterior/probs"].values[0, 0] for tree in trees])
        for at, axes in enumerate(((), (-1,))):
            probs[at] = np.flip(probs[at], axes)
        mean = probs.mean(0)
        own = entropy(mean, axis=1).mean()
        figures = measure(trees[0], cases["id"])[["dice", "nll"]].mean("case")
        rows.append(figures.assign(
            between=entropy(mean.mean((0, 2, 3))) - own,
            within=own - entropy(probs, axis=2).mean(),
        ))  # fmt: skip
    result = xr.concat(rows, xr.Variable("share", list(SHARES)))
    storage.save(result, path)
    return result
