"""The study from end to end."""

from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from active_curves.comparison import interval, joined, table
from active_curves.pictures import draw_curves
from sklearn.metrics import roc_auc_score

from active_cells.options import BASELINE, RULES, Options
from ppl_med import storage
from ppl_med.analysis import scoring
from ppl_med.analysis.statistics.group_resampling import group_weights
from ppl_med.data import Batches, flips_and_turns, load_malaria, standardization
from ppl_med.inference import BernoulliDropout, PointEstimate, active_learn, load, predict
from ppl_med.models import BayesianClassifier
from ppl_med.networks import CompactCNN
from ppl_med.storage import check_same, open_run
from ppl_med.weights import Normal


def halved(image: np.ndarray) -> np.ndarray:
    """Every second pixel is the mean of four: cells of 50 pixels keep their parasites at 25."""
    cases, channels, rows, cols = image.shape
    parts = image[:, :, : rows // 2 * 2, : cols // 2 * 2]
    parts = parts.reshape(cases, channels, rows // 2, 2, cols // 2, 2)
    return np.rint(parts.mean((3, 5))).astype(np.uint8)


def read(options: Options) -> dict[str, dict[str, Any]]:
    """Splits whose label is 1 for the rare finding; no patient is in two of them."""
    if options.source == "malaria":
        splits = load_malaria(options.data)
        return {name: {**one, "image": halved(one["image"])} for name, one in splits.items()}
    from ppl_med.data import load_isic

    found = load_isic(options.data, size=(48, 48))
    rare = [
        k
        for k, name in enumerate(found.classes)
        if name.lower() in ("mel", "melanoma", "malignant")
    ]
    for one in found.values():
        one["label"] = np.isin(one["label"], rare).astype(np.int64)
    return found


def with_prevalence(arrays: dict[str, Any], share: float, number: int, seed: int) -> np.ndarray:
    """Rows at random, of which a share is positive."""
    rng = np.random.default_rng(seed)
    label = arrays["label"]
    negative, positive = (rng.permutation(np.flatnonzero(label == k)) for k in (0, 1))
    number = min(number, int(len(positive) / share), int(len(negative) / (1 - share)))
    few = round(share * number)
    return np.sort(np.concatenate([positive[:few], negative[: number - few]]))


def build(kind: str, channels: int, rate: float) -> tuple[Any, Any]:
    """A small net with a posterior by dropout, or as one point."""
    model = BayesianClassifier(
        CompactCNN(in_channels=channels, width=8), ["negative", "positive"], prior=Normal(scale=1.0)
    )
    if kind == "point":
        return model, PointEstimate(model)
    return model, BernoulliDropout(model, rate=rate)


def figures(tree: xr.DataTree, natural: frozenset[str]) -> xr.Dataset:
    """AUROC over all cells; the rest over cells with the pool's share of positives."""
    rows = np.flatnonzero([name in natural for name in tree["posterior"]["case"].values.tolist()])
    part = tree.isel(case=rows, missing_dims="ignore")
    ranks, scores = scoring.discrimination(tree, resamples=0), scoring.score(part)
    probs = part["posterior/probs"].sel({"class": "positive"})
    label = part["observed_data/label"]
    return xr.Dataset(
        {
            "auroc": ranks["auroc"],
            "average_precision": scoring.discrimination(part, resamples=0)["average_precision"],
            "nll": scores["nll"],
            "ece": scores["ece"],
            "excess": probs.mean() - label.mean(),
        }
    ).drop_attrs()


class Study:
    """The data and the runs of one call."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = open_run(options.out, resume=options.resume)
        check_same(options, self.folder, free=("data", "rule", "seed"))
        splits = read(options)
        self.train, self.held_out = splits["train"], splits[options.split]
        loc, scale = standardization(self.train["image"])
        self.settings: dict[str, Any] = {"loc": loc, "scale": scale}
        self.natural = frozenset(
            self.held_out["id"][
                with_prevalence(self.held_out, options.prevalence, len(self.held_out["id"]), 0)
            ].tolist()
        )

    def batches(self, arrays: dict[str, Any], rows: Any, **settings: Any) -> Batches:
        """Batches of some rows, standardised."""
        part = {name: values[rows] for name, values in arrays.items()}
        return Batches(part, **{"batch_size": 500, **self.settings, **settings})

    def measured(self) -> Batches:
        """Cells that every step is measured on: the natural ones first, then further positives."""
        is_natural = np.isin(self.held_out["id"], list(self.natural))
        order = np.random.default_rng(1).permutation(len(is_natural))
        own, rest = order[is_natural[order]], order[~is_natural[order]]
        half = min(len(own), self.options.measured * 2 // 3)
        return self.batches(self.held_out, [*own[:half], *rest[: self.options.measured - half]])

    def run(self, rule: str, seed: int) -> tuple[xr.DataTree, xr.DataTree]:
        """What was bought, and the last net's predictions of all held-out cells."""
        options, folder = self.options, self.folder / f"{rule}-{seed}"
        rows = with_prevalence(self.train, options.prevalence, options.pool, seed)
        pool = self.batches(self.train, rows, batch_size=32, augment=flips_and_turns)
        kind, by = RULES[rule]
        make = partial(build, kind, self.train["image"].shape[1], options.rate)
        label = self.train["label"][rows]
        rng = np.random.default_rng(seed)
        positive, negative = (rng.permutation(np.flatnonzero(label == k)) for k in (1, 0))
        few = options.start // 5
        start = [*positive[:few], *negative[: options.start - few]]
        tree = active_learn(
            make, pool, label, acquisition=by, start=[pool.ids[row] for row in start],
            size=options.size, budget=options.budget, test=self.measured(),
            figures=partial(figures, natural=self.natural), draws=self.draws(rule),
            subsample=options.subsample, fit_options=self.fit_options, folder=folder,
            resume=True, seed=seed, device=options.device,
        )  # fmt: skip
        path = folder / "posterior.nc"
        if not path.exists():
            torch.manual_seed(seed)
            model, guide = make()
            load(folder / f"step-{tree['test'].sizes['step'] - 1}.pt", model, guide)
            everyone = self.batches(self.held_out, slice(None))
            draws = {"draws": self.draws(rule), "seed": seed, "device": options.device}
            storage.save(predict(model, guide, everyone, **draws, progress=False), path)
        return tree, storage.load(path)

    def draws(self, rule: str) -> int:
        """Draws of a posterior; a point is drawn twice, as analyses of draws want it."""
        return self.options.draws if RULES[rule][0] == "dropout" else 2

    def fit_options(self, number: int) -> dict[str, Any]:
        """As many steps whatever the number of labels."""
        epochs = max(1, round(self.options.steps / -(-number // 32)))
        return {"epochs": epochs, "learning_rate": self.options.learning_rate, "schedule": "cosine"}


def over_patients(trees: dict[tuple[str, int], xr.DataTree], resamples: int) -> xr.Dataset:
    """AUROC at the end, the mean over seeds, and its difference from the baseline.

    Intervals are of patients drawn anew, the same for all nets.
    """
    first = next(iter(trees.values()))
    label = first["observed_data/label"].values
    _, who = np.unique(first["constant_data/patient"].values, return_inverse=True)
    score = {
        key: tree["posterior/probs"].sel({"class": "positive"}).mean(("chain", "draw")).values
        for key, tree in trees.items()
    }
    rules = list(dict.fromkeys(rule for rule, _ in trees))
    drawn = []
    for weight in [np.ones(who.max() + 1), *group_weights(who.max() + 1, resamples, 0)]:
        each = {k: roc_auc_score(label, s, sample_weight=weight[who]) for k, s in score.items()}
        mean = {r: np.mean([v for (rule, _), v in each.items() if rule == r]) for r in rules}
        drawn.append([(mean[rule], mean[rule] - mean[BASELINE[rule]]) for rule in rules])
    values = np.array(drawn)
    names = ("auroc", "gain")
    ends = np.quantile(values[1:], [0.025, 0.975], axis=0) if len(values) > 1 else values[[0, 0]]
    found = {name: ("rule", values[0, :, k]) for k, name in enumerate(names)}
    for end, part in zip(("lower", "upper"), ends, strict=True):
        found |= {f"{name}_{end}": ("rule", part[:, k]) for k, name in enumerate(names)}
    return xr.Dataset(found, {"rule": rules})


def main(options: Options) -> None:
    """Run what is missing; write table and picture."""
    study = Study(options)
    bought, predicted = {}, {}
    for rule in options.rule:
        for seed in options.seed:
            print(f"{rule}, seed {seed}")
            bought[rule, seed], predicted[rule, seed] = study.run(rule, seed)
    result = joined(bought)
    patients = over_patients(predicted, 20 if options.smoke else 300)
    positives = result["class_count"].sel({"class": "positive"})
    first, last = positives.isel(step=0), {"step": -1}
    end = [
        figures(tree, study.natural).expand_dims(rule=[rule], seed=[seed])
        for (rule, seed), tree in predicted.items()
    ]
    ends = xr.combine_by_coords(end).sel(rule=list(options.rule))
    columns = {
        "positives bought": (positives.isel(last) - first, 1),
        "AUROC, mean of steps": (result["auroc"].mean("step"), 3),
        "Δ AUROC, mean of steps": (result["auroc"].mean("step"), 3),
        "AUROC at the end": (ends["auroc"], 3),
        "Δ AUROC at the end": (ends["auroc"], 3),
        "average precision": (ends["average_precision"], 3),
        "NLL": (ends["nll"], 3),
        "Δ NLL": (ends["nll"], 3),
        "ECE": (ends["ece"], 3),
        "excess": (ends["excess"], 3),
        "Δ excess": (ends["excess"], 3),
    }
    text = table(columns, BASELINE)
    lines = ["", "| rule | AUROC, all cells at the end | gain over random |", "|---|---|---|"]
    for rule in options.rule:
        one = patients.sel(rule=rule)
        spans = [
            f"{one[n]:.3f} ({one[f'{n}_lower']:.3f} to {one[f'{n}_upper']:.3f})"
            for n in ("auroc", "gain")
        ]
        lines.append(f"| {rule.replace('_', ' ')} | {spans[0]} | {spans[1]} |")
    storage.save(result, study.folder / "table.nc")
    storage.write_text(study.folder / "table.md", text + "\n" + "\n".join(lines) + "\n")
    print(text, *lines, sep="\n")
    panels = {
        "positives bought": positives - first,
        "AUROC": result["auroc"],
        "mean probability − true share": result["excess"],
    }
    draw_curves(study.folder / "curves.png", result, panels, "Mean of seeds, 95 % interval")
    mean, half = interval(positives.isel(last) - first)
    best = str(mean.idxmax().item())
    print(f"Most positives: {best}, {float(mean.max()):.1f} ± {float(half.sel(rule=best)):.1f}")
    print(f"Wrote {study.folder / 'table.md'} and {study.folder / 'curves.png'}")
