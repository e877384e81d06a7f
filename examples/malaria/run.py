"""The study from end to end."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from malaria.options import Options
from malaria.paired import paired, rows
from ppl_med import storage
from ppl_med.analysis import conformal, scoring, uncertainty
from ppl_med.data import Batches, flips_and_turns, load_malaria, standardization
from ppl_med.data.readers.malaria import CLASS_NAMES
from ppl_med.explain.attribution import attribute
from ppl_med.inference import (
    BernoulliDropout,
    MeanFieldNormal,
    PointEstimate,
    VariationalOnlineNewton,
    fit,
    functions,
    load,
    predict,
)
from ppl_med.models import BayesianClassifier
from ppl_med.networks import AlexNet, StridedCNN
from ppl_med.plots.report import write_report
from ppl_med.storage import check_same, open_run
from ppl_med.weights import LearntNormal, Normal

NETS = {"strided": StridedCNN, "alexnet": AlexNet}
# Weight of the KL in guides of independent normals.
NORMALS = {"mean_field": 1.0, "tempered": 1 / 8}
MEMBERS = 5
WEIGHT_DECAY = {"frequentist": 1.0, "dropout": 1.0}


class Study:
    """The data and the runs of one call."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = open_run(options.out, resume=options.resume)
        check_same(options, self.folder, free=("data", "guide", "fraction", "seed"))
        splits = load_malaria(options.data)
        self.loc, self.scale = standardization(splits["train"]["image"])
        self.test, self.val = (self._batches(splits[name]) for name in ("test", "val"))
        self.images = splits["test"]["image"]
        self.patients = np.asarray(splits["test"]["patient"])
        if options.smoke:
            self.test, self.val = self.test.first(64), self.val.first(64)
            self.images, self.patients = self.images[:64], self.patients[:64]

    def _batches(self, arrays: dict[str, Any], **settings: Any) -> Batches:
        settings = {"batch_size": 256, "loc": self.loc, "scale": self.scale} | settings
        return Batches(arrays, **settings)

    def training(self, fraction: float, seed: int) -> Batches:
        """Augmented training batches of a fraction of the cells."""
        arrays = load_malaria(self.options.data, fraction=fraction, seed=seed)["train"]
        batches = self._batches(arrays, batch_size=128, shuffle=True, augment=flips_and_turns)
        return batches.first(256) if self.options.smoke else batches

    def build(self, guide: str, fraction: float, seed: int) -> tuple[Any, Any, dict[str, Any]]:
        """Model, guide and the recipe's settings of ``fit``; all chosen on the validation part."""
        torch.manual_seed(seed)
        net = NETS[self.options.net](in_channels=self.images.shape[1])
        model = BayesianClassifier(net, CLASS_NAMES, prior=Normal(scale=0.3))
        epochs = self.options.epochs / fraction**0.5
        if guide in NORMALS:
            epochs = 0.75 * self.options.epochs / fraction
        settings: dict[str, Any] = {
            "epochs": 2 if self.options.smoke else max(1, round(epochs)),
            "learning_rate": 1e-3,
            "schedule": "cosine",
        }
        if guide in NORMALS:
            start = PointEstimate(model, use_prior=False)
            load(self.path("frequentist", fraction, seed) / "checkpoint.pt", model, start)
            model = BayesianClassifier(net, CLASS_NAMES, prior=LearntNormal("weight"))
            kind = MeanFieldNormal(model, init_scale=0.02, estimator="shared", start=start)
            # Both rates fall on the weighted loss, so that the weight does not slow them down.
            weight = settings["kl_weight"] = NORMALS[guide]
            rates = VariationalOnlineNewton(0.05 / weight, precision_rate=0.01 / weight)
            settings["optimizer"] = rates
            return model, kind, settings
        settings["optimizer"] = lambda parameters: torch.optim.AdamW(
            parameters, lr=1e-3, weight_decay=WEIGHT_DECAY[guide], fused=True
        )
        if guide == "dropout":
            return model, BernoulliDropout(model, rate=0.05), settings
        return model, PointEstimate(model, use_prior=False), settings

    def path(self, guide: str, fraction: float, seed: int) -> Path:
        """Folder of one run."""
        return self.folder / f"{guide}-{fraction:g}-{seed}"

    def run(self, guide: str, fraction: float, seed: int) -> xr.DataTree:
        """Train and predict, or load what an earlier call left."""
        if guide == "ensemble":
            return self._ensemble(fraction, seed)
        folder = self.path(guide, fraction, seed)
        if (folder / "posterior.nc").exists():
            return storage.load(folder / "posterior.nc")
        if guide in NORMALS:
            self.run("frequentist", fraction, seed)
        folder.mkdir(exist_ok=True)
        print(f"{guide}, {fraction:.0%} of the data, seed {seed}")
        model, program, settings = self.build(guide, fraction, seed)
        batches = self.training(fraction, seed)
        history = fit(
            model,
            program,
            batches,
            device=self.options.device,
            precision=self.options.precision,
            seed=seed,
            checkpoint=folder / "checkpoint.pt",
            resume=self.options.resume,
            **settings,
        )
        storage.save(history, folder / "history.nc")
        draws = 2 if guide == "frequentist" else self.options.draws
        tree = predict(
            model, program, self.test, draws=draws, seed=seed, device=self.options.device
        )
        storage.save(tree, folder / "posterior.nc")
        return tree

    def kl(self, guide: str, fraction: float, seed: int) -> float:
        """KL to the prior in nats per case, the mean of the last tenth of the training."""
        history = self.path(guide, fraction, seed) / "history.nc"
        if guide not in NORMALS or not history.exists():
            return float("nan")
        values = xr.load_dataset(history)["kl"].values
        return float(values[-max(1, len(values) // 10) :].mean())

    def _ensemble(self, fraction: float, seed: int) -> xr.DataTree:
        """Five frequentist nets with seeds of their own, as chains of one tree."""
        seeds = range(MEMBERS * seed, MEMBERS * (seed + 1))
        trees = [self.run("frequentist", fraction, member) for member in seeds]
        first = [tree.isel(draw=[0], missing_dims="ignore") for tree in trees]
        return storage.join_chains(first, groups=("posterior",))


def figures(tree: xr.DataTree, kl: float) -> xr.Dataset:
    """The table's figures of one run; ``kl`` in nats per case."""
    scores = scoring.score(tree)
    parts = uncertainty.summary(tree, mcse=False)
    return xr.Dataset(
        {
            "accuracy": scores["accuracy"],
            "accuracy_per_class": scores["accuracy_per_class"],
            "nll": scores["nll"],
            "ece": scores["ece"],
            "epistemic": parts["epistemic"],
            "aleatoric": parts["aleatoric"],
            "kl": kl,
        }
    ).drop_attrs()


def collect(study: Study) -> xr.Dataset:
    """Run everything that was asked for; the figures over method, fraction and seed."""
    options = study.options
    cells = {}
    for seed, guide, fraction in itertools.product(options.seed, options.guide, options.fraction):
        tree = study.run(guide, fraction, seed)
        cells[guide, fraction, seed] = figures(tree, study.kl(guide, fraction, seed))
        print(table(assemble(cells)))
    result = assemble(cells)
    storage.save(result, study.folder / "table.nc")
    lines = [table(result)]
    for guide in NORMALS:
        if {guide, "frequentist"} <= set(options.guide):
            found = {part: compare(study, guide, part) for part in options.fraction}
            lines += ["", f"{guide} minus frequentist:", "", rows(found)]
    print("\n".join(lines[1:]))
    storage.write_text(study.folder / "table.md", "\n".join(lines) + "\n")
    return result


def compare(study: Study, guide: str, fraction: float) -> xr.Dataset:
    """A mean-field net minus the frequentist net, over all seeds."""
    ours, theirs = (
        [study.run(name, fraction, seed) for seed in study.options.seed]
        for name in (guide, "frequentist")
    )
    return paired(ours, theirs, study.patients)


def assemble(cells: dict[tuple[str, float, int], xr.Dataset]) -> xr.Dataset:
    """One Dataset over (method, fraction, seed); what was not run is NaN."""
    parts = [
        part.expand_dims(method=[guide], fraction=[fraction], seed=[seed])
        for (guide, fraction, seed), part in cells.items()
    ]
    return xr.combine_by_coords(parts, join="outer", combine_attrs="drop")


def table(result: xr.Dataset) -> str:
    """Markdown: mean and, over several seeds, standard deviation of every figure."""
    lines = [
        "| method | data | seeds | parasitized % | uninfected % | accuracy % | NLL | ECE | "
        "epistemic ×10⁻³ | aleatoric ×10⁻³ | KL (nats per case) |",
        "|" + "---|" * 11,
    ]
    for method, fraction in itertools.product(result["method"].values, result["fraction"].values):
        part = result.sel({"method": method, "fraction": fraction}).dropna("seed", subset=["nll"])
        if part.sizes["seed"] == 0:
            continue
        per_class = 100 * part["accuracy_per_class"]
        columns = [
            spread(per_class.sel({"class": "parasitized"}), 1),
            spread(per_class.sel({"class": "uninfected"}), 1),
            spread(100 * part["accuracy"], 1),
            spread(part["nll"], 3),
            spread(part["ece"], 3),
            "0" if method == "frequentist" else spread(1000 * part["epistemic"], 2),
            spread(1000 * part["aleatoric"], 1),
            spread(part["kl"], 3) if np.isfinite(part["kl"]).all() else "",
        ]
        start = f"| {method} | {fraction:.0%} | {part.sizes['seed']} | "
        lines.append(start + " | ".join(columns) + " |")
    return "\n".join(lines)


def spread(values: xr.DataArray, digits: int) -> str:
    """Mean ± standard deviation over seeds."""
    mean = f"{float(values.mean()):.{digits}f}"
    return mean if values.size < 2 else f"{mean} ± {float(values.std(ddof=1)):.{digits}f}"


def show(study: Study, result: xr.Dataset) -> None:
    """A report on the mean-field net with all the data."""
    seed, fraction = study.options.seed[0], max(study.options.fraction)
    tree = study.run("mean_field", fraction, seed)
    folder = study.path("mean_field", fraction, seed)
    model, guide, _ = study.build("mean_field", fraction, seed)
    load(folder / "checkpoint.pt", model, guide)
    settings = {"draws": study.options.draws, "seed": seed, "device": study.options.device}
    calibration = predict(model, guide, study.val, **settings)
    sets = conformal.predict_sets(conformal.calibrate(calibration, alpha=0.1), tree)
    infected = np.flatnonzero(tree["observed_data/label"].values == 1)[:6]
    batch = next(iter(study.test.subset(infected)))
    device = next(iter(guide.parameters())).device
    maps = attribute(
        functions(model, guide, draws=8, seed=seed),
        batch["image"].to(device),
        CLASS_NAMES.index("parasitized"),
        output="log_probability",
        tolerance=0.5,
        case=batch["id"],
        progress=True,
    )
    write_report(
        study.folder / "report.html",
        title="Malaria cells: a Bayesian AlexNet",
        smoke=study.options.smoke,
        tree=tree,
        history=storage.load(folder / "history.nc"),
        images=study.images,
        prediction_sets=sets,
        attribution=maps,
        reliability={
            f"{method}": scoring.reliability(study.run(method, fraction, seed))
            for method in result["method"].values
        },
        scores=scoring.score(tree),
        data_size=result.sel(
            {"method": [m for m in result["method"].values if m != "frequentist"]}
        )[["aleatoric", "epistemic"]],
        notes=("Test part, patients that no training image comes from.",),
    )
    print(f"Wrote {study.folder / 'report.html'}")


def main(options: Options) -> None:
    """Run the study, print and save its table, write the report."""
    study = Study(options)
    result = collect(study)
    print(table(result))
    if "mean_field" in options.guide:
        show(study, result)
