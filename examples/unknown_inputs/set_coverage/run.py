"""The study from end to end."""

import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from set_coverage.options import Data, Guide, Options

from ppl_med import storage
from ppl_med.analysis import conformal
from ppl_med.analysis.conformal.exchangeability import FALSE_ALARM
from ppl_med.data import Batches, load_malaria, load_pneumoniamnist, standardization
from ppl_med.data.readers.folders import find_place
from ppl_med.data.readers.image_files import read_grey
from ppl_med.data.readers.pneumoniamnist import CLASS_NAMES
from ppl_med.data.shifts import corrupt
from ppl_med.inference import (
    BernoulliDropout,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    predict,
)
from ppl_med.models import BayesianClassifier
from ppl_med.networks import LeNet
from ppl_med.storage import check_same, open_run
from ppl_med.weights import Normal

Cases = dict[str, Any]
KEEP = ("feature:features", "feature:classifier.3")
CORRUPTED = ("gaussian_noise", "contrast_down", "gaussian_blur")
SEVERITIES = (1, 3, 5)
SIDE = {"pneumoniamnist": 28, "malaria": 50, "cxr_nih": 64}
EPOCHS = {"pneumoniamnist": 15, "malaria": 12, "cxr_nih": 20}
ALPHA = 0.1
MEMBERS = 4
CELLS = 30  # of one patient at most
FIGURES = ("coverage", "lower", "p_outputs", "p_features", "p", "weighted", "effective_n",
           "unbounded")  # fmt: skip


def read(name: Data, folder: Path) -> dict[str, Cases]:
    """Arrays of train, val and test."""
    if name == "pneumoniamnist":
        return load_pneumoniamnist(folder)
    if name == "malaria":
        splits = load_malaria(folder, fraction=0.1)
        return {part: splits[part] if part == "train" else some(splits[part]) for part in splits}
    place = find_place(folder, "cxr_nih", ("train", "val", "test"), module=__name__)
    return {part: films(place / part, SIDE[name]) for part in ("train", "val", "test")}


def some(cases: Cases) -> Cases:
    """At most ``CELLS`` cells of a patient, drawn at random."""
    order = np.random.default_rng(0).permutation(len(cases["patient"]))
    kept: dict[str, int] = {}
    rows = []
    for row in order:
        who = str(cases["patient"][row])
        kept[who] = kept.get(who, 0) + 1
        if kept[who] <= CELLS:
            rows.append(row)
    return {key: values[np.sort(rows)] for key, values in cases.items()}


def films(folder: Path, side: int) -> Cases:
    """NIH films without findings and with pneumonia; names begin with the patient's number."""
    kinds = ("No_findings", "Pneumonia")
    paths = [
        (label, path) for label in (0, 1) for path in sorted((folder / kinds[label]).glob("*"))
    ]
    return {
        "image": np.stack([read_grey(path, (side, side))[None] for _, path in paths]),
        "label": np.array([label for label, _ in paths]),
        "id": np.array([path.stem for _, path in paths]),
        "patient": np.array([path.stem.split("_")[0] for _, path in paths]),
    }


def shifted(name: Data, splits: dict[str, Cases], folder: Path) -> Iterator[tuple[str, Cases]]:
    """Test cases as they are, made worse, and of another hospital, each with a name."""
    test = splits["test"]
    yield "test", test
    for kind, severity in itertools.product(CORRUPTED, SEVERITIES):
        yield f"{kind} {severity}", {**test, "image": corrupt(test["image"], kind, severity)}
    if name == "pneumoniamnist":
        place = find_place(folder, "cxr_nih", ("train", "val", "test"), module=__name__)
        yield "NIH films", films(place / "test", SIDE[name])


class Nets:
    """The nets of one data set.

    Args:
        options: Of the call.
        name: The data set.
        folder: Where checkpoints go.
    """

    def __init__(self, options: Options, name: Data, folder: Path) -> None:
        self.options, self.name, self.folder = options, name, folder
        self.splits = read(name, options.data)
        loc, scale = standardization(self.splits["train"]["image"])
        self.settings: dict[str, Any] = {"loc": loc, "scale": scale}
        self.last: tuple[Any, Any] = (None, None)

    def batches(self, cases: Cases, **settings: Any) -> Batches:
        """Batches of cases; few of them in a smoke run."""
        found = Batches(cases, **({"batch_size": 512} | self.settings | settings))
        if not self.options.smoke:
            return found
        number = found.num_cases
        return found.subset(np.sort(np.random.default_rng(0).permutation(number)[:80]))

    def trained(self, guide: Guide, seed: int) -> tuple[Any, Any]:
        """Model and guide, trained or loaded."""
        torch.manual_seed(seed)
        first = MEMBERS * seed if guide == "ensemble" else seed  # members have seeds of their own
        net = LeNet(1, 2, size=SIDE[self.name])
        last: dict[str, Any] = {"where": "last_layer"} if guide == "last_layer" else {}
        model = BayesianClassifier(net, CLASS_NAMES, prior=Normal(1.0 if last else 0.3), **last)
        program: Any
        if guide == "last_layer":
            program = MeanFieldNormal(model, init_scale=0.3, estimator="auto")
        elif guide == "dropout":
            program = BernoulliDropout(model, rate=0.1)
        elif guide == "ensemble":
            program = Ensemble(
                model, lambda own: PointEstimate(own, use_prior=False), MEMBERS, seed=first
            )
        else:
            program = PointEstimate(model, use_prior=False)
        print(f"{self.name}: {guide}, seed {seed}", flush=True)
        fit(
            model,
            program,
            self.batches(self.splits["train"], batch_size=64, shuffle=True),
            epochs=1 if self.options.smoke else EPOCHS[self.name],
            optimizer=decayed,
            schedule="cosine",
            device=self.options.device,
            seed=first,
            checkpoint=self.folder / f"{guide}-{seed}.pt",
            resume=True,
            progress=False,
        )
        return model, program

    def tree(self, guide: Guide, seed: int, cases: Cases) -> xr.DataTree:
        """Posterior of cases with features of layers."""
        if self.last[0] != (guide, seed):
            self.last = (guide, seed), self.trained(guide, seed)
        model, program = self.last[1]
        several = guide in ("last_layer", "dropout")
        return predict(
            model,
            program,
            self.batches(cases),
            draws=self.options.draws if several else 1,
            seed=seed,
            keep=KEEP,
            device=self.options.device,
            progress=False,
        )


def decayed(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW that spares vectors, among them those of a guide, which have a prior of their own."""
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-3)


def unlabelled(tree: xr.DataTree) -> xr.DataTree:
    """The tree as it is in use: nobody has labelled its cases."""
    return tree.filter(lambda node: node.name not in ("observed_data", "log_likelihood"))


def line(val: xr.DataTree, test: xr.DataTree, *, weighted: bool = True) -> dict[str, float]:
    """Figures of sets calibrated on one tree and read on the other."""
    learnt = conformal.calibrate(val, ALPHA)
    blind = conformal.predict_sets(learnt, unlabelled(test), shift_alarm=0)["shift_pvalue"]
    posterior = test["posterior"].to_dataset()
    told = test.assign(posterior=xr.DataTree(posterior[["probs"]]))  # features were looked at
    sets = conformal.predict_sets(learnt, told, shift_alarm=0)
    found = {
        "coverage": float(sets["coverage"]),
        "lower": float(sets["coverage_lower"]),
        "p_outputs": float(blind.attrs["outputs"]),
        "p_features": float(blind.attrs["features"]),
        "p": float(blind),
        "size": float(sets["set_size"].mean()),
    }
    return found | (after_weights(val, test) if weighted else {})


def after_weights(val: xr.DataTree, test: xr.DataTree) -> dict[str, float]:
    """Coverage by weights for the shift; all classes where the sets do not overlap."""
    try:
        weights, own = conformal.density_ratio(val, test)
    except ValueError as error:
        if "do not overlap" not in str(error):
            raise
        return {"weighted": np.nan, "effective_n": 0.0, "unbounded": 1.0}
    learnt = conformal.calibrate(val, ALPHA, weights=weights)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* get the set of everything")
        sets = conformal.predict_sets(learnt, test, weights=own, shift_alarm=0)
    return {
        "weighted": float(sets["coverage"]),
        "effective_n": float(learnt["effective_n"]),
        "unbounded": sets.attrs["unbounded"] / sets.sizes["case"],
    }


def halves(val: xr.DataTree, splits: int, seed: int) -> Iterator[tuple[xr.DataTree, xr.DataTree]]:
    """Random halves of the cases, or of the patients, where there is no shift."""
    columns = val["constant_data"].to_dataset() if "constant_data" in val else xr.Dataset()
    case = val["posterior"].to_dataset()["case"].values
    who, index = np.unique(
        columns["patient"].values if "patient" in columns else case, return_inverse=True
    )
    random = np.random.default_rng(seed)
    for _ in range(splits):
        first = (random.permutation(len(who)) < len(who) // 2)[index]
        one, other = (val.isel(case=part, missing_dims="ignore") for part in (first, ~first))
        yield one, other


def run(options: Options, name: Data, folder: Path) -> list[dict[str, Any]]:
    """Every line of a data set; those of an earlier call are read."""
    nets = Nets(options, name, folder)
    tests = list(shifted(name, nets.splits, options.data))
    rows = []
    for seed, guide in itertools.product(options.seed, options.guide):
        path = folder / f"{guide}-{seed}.json"
        if not path.exists():
            val = nets.tree(guide, seed, nets.splits["val"])
            who = {"pictures": name, "guide": guide, "seed": seed}
            own = []
            for pair in halves(val, options.splits, seed):
                own.append(who | {"test": "val halves"} | line(*pair, weighted=False))
            for kind, cases in tests:
                own.append(who | {"test": kind} | line(val, nets.tree(guide, seed, cases)))
            storage.write_text(path, json.dumps(own))
        rows += json.loads(path.read_text())
        print(table(rows), flush=True)
    return rows


HEAD = ("pictures", "test cases", "guide", "runs", "coverage", "least allowed", "under", "outputs",
        "features", "told", "silent", "weighted", "effective n", "full sets")  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: means over runs, and numbers of runs that are under their band and that warn.

    "outputs" would warn by outputs alone, "features" by features alone, "told" is what the call
    says; "silent" are runs under the band that were not told.
    """
    keys = list(dict.fromkeys((row["pictures"], row["test"], row["guide"]) for row in rows))
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for key in keys:
        part = [row for row in rows if (row["pictures"], row["test"], row["guide"]) == key]
        values = {name: np.array([row.get(name, np.nan) for row in part]) for name in FIGURES}
        under, told = values["coverage"] < values["lower"], values["p"] < FALSE_ALARM
        means = {name: f"{one.mean():.3f}" for name, one in values.items()}
        cells = [*key, str(len(part)), means["coverage"], means["lower"], str(under.sum())]
        cells += [str((values[name] < FALSE_ALARM).sum()) for name in ("p_outputs", "p_features")]
        cells += [str(told.sum()), str((under & ~told).sum())]
        several = {"weighted": 3, "effective_n": 0, "unbounded": 2}
        for name, digits in several.items():
            absent = np.isnan(values[name]).all()
            cells.append("" if absent else f"{np.nanmean(values[name]):.{digits}f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(options: Options) -> None:
    """Run everything, print and save the table and all its lines."""
    if options.smoke:
        options.splits, options.seed, options.draws = 1, options.seed[:1], 2
    folder = open_run(options.out, resume=options.resume)
    check_same(options, folder, free=("data", "pictures", "guide", "seed"))
    rows: list[dict[str, Any]] = []
    for name in options.pictures:
        place = folder / name
        place.mkdir(exist_ok=True)
        rows += run(options, name, place)
    storage.write_text(folder / "lines.json", json.dumps(rows, indent=1))
    together = table([row | {"guide": "all"} for row in rows])
    print(together)
    storage.write_text(folder / "table.md", f"{together}\n\n{table(rows)}\n")
