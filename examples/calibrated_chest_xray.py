"""Chest X-rays: can the probability be trusted, and which diagnoses can not be excluded?

Pneumonia on 28 x 28 X-rays of children (PneumoniaMNIST) by five ways to train one LeNet, each
recalibrated in five ways, each with three kinds of prediction sets. Every row is scored on the test
part: accuracy, NLL, Brier score and calibration error with bootstrap intervals, coverage of the
sets against its exact band, and their size.

No case is used twice. The network learns on the training part. One half of the validation part
teaches the recalibration maps and tells recipes and maps apart; the other half does nothing but
calibrate the prediction sets. The test part is read after all choices are made.

Every run (guide, seed) gets a folder with its checkpoint and posteriors. Finished runs are not
repeated with --resume. The ensemble's first member is the frequentist net.
"""

import itertools
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
import xarray as xr

from ppl_med import storage
from ppl_med.analysis import binning, calibration, conformal, scoring
from ppl_med.data import Batches, RotateAndScale, load_pneumoniamnist, standardization
from ppl_med.data.pneumoniamnist import CLASS_NAMES
from ppl_med.inference import BernoulliDropout, MeanFieldNormal, PointEstimate, fit, load, predict
from ppl_med.models import BayesianClassifier
from ppl_med.networks import LeNet
from ppl_med.plots import calibration_curves, prediction_sets
from ppl_med.plots.page import Section, paragraph, picture
from ppl_med.plots.page import table as html_table
from ppl_med.plots.report import report
from ppl_med.priors import Normal
from ppl_med.runs import open_run

Guide = Literal["frequentist", "mean_field", "dropout", "ensemble", "last_layer"]
Likelihood = Literal["categorical", "label_noise", "label_smoothing", "margin_smoothing", "focal"]
MAPS = ("none", "temperature", "vector", "isotonic", "beta", "histogram")
ELIGIBLE = ("temperature", "vector", "beta")  # the others can give 0, and an infinite NLL
SETS = ("lac", "aps", "raps")
PARTS = ("recalibration", "conformal", "test")
FIGURES = ("accuracy", "nll", "brier", "ece")
GAPS = ("nll", "ece")
MEMBERS = 5
FOLDS = 5
BINS = 15


@dataclass
class Options:
    """Train, recalibrate, and predict sets on chest X-rays under several guides and seeds."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds pneumoniamnist/pneumoniamnist.npz; by default what PPL_MED_DATA names."""
    guide: tuple[Guide, ...] = ("frequentist", "mean_field", "dropout", "ensemble", "last_layer")
    """Which methods to run. Frequentist nets that others need are trained if they are not there."""
    likelihood: Likelihood = "categorical"
    """What is trained; see ppl_med.likelihoods for which of them are densities."""
    alpha: float = 0.1
    """Share of prediction sets that may miss the true class."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, data order and draws."""
    out: Path = Path("runs/calibrated_chest_xray")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    draws: int = 32
    """Posterior draws."""
    replicates: int = 200
    """Bootstrap data sets for the intervals."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Go on in the output folder and keep finished runs."""


class Study:
    """The data and the runs of one call."""

    def __init__(self, options: Options) -> None:
        if options.smoke:
            options.draws, options.replicates, options.seed = 2, 10, options.seed[:1]
        self.options = options
        self.folder = open_run(options.out, resume=options.resume)
        splits = load_pneumoniamnist(options.data)
        loc, scale = standardization(splits["train"]["image"])
        settings: dict[str, Any] = {"loc": loc, "scale": scale}
        self.training = Batches(
            splits["train"],
            batch_size=128,
            shuffle=True,
            transform=RotateAndScale(degrees=10, factor=1.1),
            **settings,
        )
        if options.smoke:
            self.training = self.training.first(256)
        val = Batches(splits["val"], batch_size=512, **settings)
        order = np.random.default_rng(0).permutation(val.num_cases)
        half = val.num_cases // 2
        self.parts = {
            "recalibration": val.subset(np.sort(order[:half])),
            "conformal": val.subset(np.sort(order[half:])),
            "test": Batches(splits["test"], batch_size=512, **settings),
        }
        self.images = splits["test"]["image"]
        self._trees: dict[tuple[str, int, str], xr.DataTree] = {}

    def build(self, guide: str, seed: int) -> tuple[Any, Any, dict[str, Any]]:
        """Model, guide and the recipe's settings of ``fit``."""
        torch.manual_seed(seed)
        last = "last_layer" if guide == "last_layer" else None
        model = BayesianClassifier(
            LeNet(1, len(CLASS_NAMES), size=28),
            CLASS_NAMES,
            prior=Normal(scale=1.0 if last else 0.3),
            where=last,
            likelihood=self.options.likelihood,
        )
        settings: dict[str, Any] = {"epochs": 20, "schedule": "cosine", "learning_rate": 1e-3}
        if guide == "mean_field":
            start = PointEstimate(model, use_prior=False)
            load(self.path("frequentist", seed) / "checkpoint.pt", model, start)
            program: Any = MeanFieldNormal(model, init_scale=0.06, estimator="shared", start=start)
            settings["epochs"] = 8
        elif guide == "last_layer":
            program = MeanFieldNormal(model, init_scale=0.3)
            settings["optimizer"] = decayed_features
        elif guide == "dropout":
            program = BernoulliDropout(model, rate=0.1)
            settings["optimizer"] = decayed
        else:
            program = PointEstimate(model, use_prior=False)
            settings["optimizer"] = decayed
        if self.options.smoke:
            settings["epochs"] = 1
        return model, program, settings

    def path(self, guide: str, seed: int) -> Path:
        """Folder of one run."""
        return self.folder / f"{guide}-{seed}"

    def run(self, guide: str, seed: int) -> None:
        """Train and predict every part, unless an earlier call did."""
        if guide == "ensemble":
            for member in members(seed):
                self.run("frequentist", member)
            return
        folder = self.path(guide, seed)
        if (folder / f"posterior-{PARTS[-1]}.nc").exists():
            return
        if guide == "mean_field":
            self.run("frequentist", seed)
        folder.mkdir(exist_ok=True)
        print(f"{guide}, seed {seed}")
        model, program, settings = self.build(guide, seed)
        options = self.options
        history = fit(
            model,
            program,
            self.training,
            device=options.device,
            seed=seed,
            checkpoint=folder / "checkpoint.pt",
            resume=options.resume,
            **settings,
        )
        storage.save(history, folder / "history.nc")
        draws = 1 if guide == "frequentist" else options.draws
        for part in PARTS:
            batches = self.parts[part]
            tree = predict(
                model, program, batches, draws=draws, seed=seed, device=options.device,
                progress=False,
            )  # fmt: skip
            storage.save(tree, folder / f"posterior-{part}.nc")

    def tree(self, guide: str, seed: int, part: str) -> xr.DataTree:
        """The posterior of a part, which ``run`` left."""
        key = (guide, seed, part)
        if key not in self._trees:
            self._trees[key] = self._joined(seed, part) if guide == "ensemble" else self._one(*key)
        return self._trees[key]

    def _one(self, guide: str, seed: int, part: str) -> xr.DataTree:
        tree = storage.load(self.path(guide, seed) / f"posterior-{part}.nc")
        assert isinstance(tree, xr.DataTree)
        return tree

    def _joined(self, seed: int, part: str) -> xr.DataTree:
        """Frequentist nets as chains of one tree."""
        trees = [self.tree("frequentist", member, part) for member in members(seed)]
        probs = xr.concat([tree["posterior/probs"] for tree in trees], dim="chain")
        groups = {
            "/posterior": probs.assign_coords(chain=list(range(MEMBERS))).to_dataset(name="probs"),
            "/observed_data": trees[0]["observed_data"].to_dataset(),
        }
        joined = xr.DataTree.from_dict(groups)
        joined.attrs.update(trees[0].attrs, guide="Ensemble of PointEstimate", chains=MEMBERS)
        return joined


def members(seed: int) -> list[int]:
    """Seeds of an ensemble's nets; the first is the frequentist net's."""
    return [seed + 1000 * member for member in range(MEMBERS)]


def decayed(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW on all parameters."""
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)


def decayed_features(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW whose decay spares the guide's vectors, which have a prior of their own."""
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-3)


# --- recalibration, and which map to take


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


def cross_validated_nll(name: str, tree: xr.DataTree) -> float:
    """NLL of a map on cases it was not learnt on, all from the recalibration half; nats a case.

    Infinite where some fold has no best parameters.
    """
    fold = np.random.default_rng(0).permutation(tree["posterior"].sizes["case"]) % FOLDS
    total = 0.0
    for held_out in range(FOLDS):
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
    scores = {
        guide: {
            name: float(
                np.mean(
                    [
                        cross_validated_nll(name, study.tree(guide, seed, "recalibration"))
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


# --- figures on the test part


def samples(study: Study) -> np.ndarray:
    """Positions of all test cases, then of bootstrap samples of them, (1 + replicate, case)."""
    size = study.parts["test"].num_cases
    again = np.random.default_rng(0).integers(size, size=(study.options.replicates, size))
    return np.concatenate([np.arange(size)[None], again])


def resampled(test: xr.DataTree, taken: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure of all test cases and of each bootstrap sample, (1 + replicate,)."""
    terms = per_case(test)
    values = {str(name): terms[name].values[taken] for name in terms}
    correct, confidence = (
        xr.DataArray(values[name][None], dims=("chain", "draw", "case"))
        for name in ("accuracy", "confidence")
    )
    ece = binning.calibration_error(correct, confidence, BINS).values[0]
    return {name: values[name].mean(1) for name in FIGURES[:-1]} | {"ece": ece}


def interval_ends(name: str, values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of what ``resampled`` gave, or of differences of it.

    That of the ECE is the basic one, twice the figure less the quantiles: resampling adds as much
    to a calibration error as chance already did.
    """
    low, high = np.quantile(values[1:], [0.025, 0.975], method="inverted_cdf").tolist()
    twice = 2 * float(values[0])
    return (twice - high, twice - low) if name == "ece" else (low, high)


def figures(study: Study, guide: str, name: str, seed: int) -> xr.Dataset:
    """The table's figures of one guide, map and seed; NaN where the map has no best parameters."""
    learnt_on, *others = (study.tree(guide, seed, part) for part in PARTS)
    try:
        held, test = (recalibrated(name, learnt_on, tree) for tree in others)
    except ValueError as error:
        print(f"{guide}, seed {seed}: no {name} map. {error}")
        return missing()
    found: dict[str, Any] = {}
    for figure, values in resampled(test, samples(study)).items():
        low, high = interval_ends(figure, values)
        found |= {figure: float(values[0]), f"{figure}_lower": max(low, 0.0)}
        found[f"{figure}_upper"] = high
    sets = [
        conformal.predict_sets(
            conformal.calibrate(held, study.options.alpha, method=method), test, shift_alarm=0
        )
        for method in SETS
    ]
    for figure in ("coverage", "coverage_lower", "coverage_upper"):
        found[figure] = ("sets", [float(one[figure]) for one in sets])
    found["set_size"] = ("sets", [float(one["set_size"].mean()) for one in sets])
    return xr.Dataset(found, coords={"sets": list(SETS)})


def missing() -> xr.Dataset:
    """Figures that could not be had."""
    ends = ("", "_lower", "_upper")
    scalars = {f"{figure}{end}": np.nan for figure in FIGURES for end in ends}
    names = ("coverage", "coverage_lower", "coverage_upper", "set_size")
    per_set = {name: ("sets", [np.nan] * len(SETS)) for name in names}
    return xr.Dataset({**scalars, **per_set}, coords={"sets": list(SETS)})


def differences(study: Study, chosen: dict[str, str]) -> xr.Dataset:
    """NLL and ECE of recalibrated Bayesian nets less those of the recalibrated frequentist net.

    Each with the map that was chosen for it; mean over seeds, with a bootstrap interval over cases
    that resamples the same cases for both.
    """
    taken = samples(study)
    found = {
        guide: [
            resampled(recalibrated(chosen[guide], *learnt_and_test(study, guide, seed)), taken)
            for seed in study.options.seed
        ]
        for guide in study.options.guide
    }
    guides = [guide for guide in found if guide != "frequentist"]
    result = xr.Dataset(coords={"guide": guides, "figure": list(GAPS)})
    cells = np.empty((3, len(guides), 2))
    for (row, guide), (col, figure) in itertools.product(enumerate(guides), enumerate(GAPS)):
        own, other = (
            np.mean([one[figure] for one in found[name]], 0) for name in (guide, "frequentist")
        )
        cells[:, row, col] = (own[0] - other[0], *interval_ends(figure, own - other))
    for name, values in zip(("difference", "lower", "upper"), cells, strict=True):
        result[name] = (("guide", "figure"), values)
    result.attrs["map"] = "; ".join(f"{guide}: {chosen[guide]}" for guide in found)
    return result


def learnt_and_test(study: Study, guide: str, seed: int) -> tuple[xr.DataTree, xr.DataTree]:
    """What a map is learnt on, and what it is scored on."""
    return study.tree(guide, seed, "recalibration"), study.tree(guide, seed, "test")


def collect(study: Study) -> xr.Dataset:
    """All figures over guide, map and seed."""
    options = study.options
    parts = []
    for guide, name, seed in itertools.product(options.guide, MAPS, options.seed):
        part = figures(study, guide, name, seed)
        parts.append(part.expand_dims(guide=[guide], map=[name], seed=[seed]))
    result = xr.combine_by_coords(parts, combine_attrs="drop")
    assert isinstance(result, xr.Dataset)
    return result.sel(guide=list(options.guide), map=list(MAPS))


# --- what is shown

HEAD = ("guide", "recalibration", "accuracy %", "NLL", "Brier", "ECE",
        *(f"{name.upper()} coverage, size" for name in SETS))  # fmt: skip


def rows(result: xr.Dataset) -> list[list[str]]:
    """The table: means over seeds of figures and of the ends of their intervals.

    Over the seeds that have them: see ``figures``.
    """
    mean = result.mean("seed")
    lines = []
    for guide, name in itertools.product(result["guide"].values, result["map"].values):
        part = mean.sel({"guide": guide, "map": name})
        shown = [interval(part, figure, 100 if figure == "accuracy" else 1) for figure in FIGURES]
        pairs = zip(part["coverage"].values, part["set_size"].values, strict=True)
        sets = [f"{coverage:.3f}, {size:.2f}" for coverage, size in pairs]
        lines.append([str(guide).replace("_", "-"), str(name), *shown, *sets])
    return lines


def interval(part: xr.Dataset, name: str, factor: int) -> str:
    """A figure and its 95 % interval."""
    value, low, high = (factor * float(part[f"{name}{end}"]) for end in ("", "_lower", "_upper"))
    digits = 1 if factor == 100 else 3
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def markdown(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    top = list(head)
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in (top, ["---"] * len(top), *map(list, lines))
    )


def band(study: Study, result: xr.Dataset) -> str:
    """What the coverage should be, in words."""
    low, high = (float(result[f"coverage_{end}"].mean()) for end in ("lower", "upper"))
    return (
        f"Exact 99 % band of every coverage: {low:.3f} to {high:.3f}, for at least "
        f"{1 - study.options.alpha:g} aimed at ({study.parts['conformal'].num_cases} calibration "
        f"and {study.parts['test'].num_cases} test cases). Ties of scores, which isotonic and "
        "histogram maps make, can only raise it."
    )


def verdict(gaps: xr.Dataset, chosen: dict[str, str]) -> str:
    """Whether the Bayesian net chosen on the validation part beats the frequentist one."""
    guide = chosen["best"]
    part = gaps.sel(guide=guide)
    words = []
    for figure in GAPS:
        one = part.sel(figure=figure)
        gap, low, high = (float(one[name]) for name in ("difference", "lower", "upper"))
        word = "lower" if gap < 0 else "not lower"
        sure = "" if high < 0 or low > 0 else ", which chance could give"
        words.append(f"{figure.upper()} is {word} ({gap:+.4f} [{low:+.4f}, {high:+.4f}]{sure})")
    return (
        f"Chosen on the validation part: {guide} with {chosen[guide]}, against the frequentist net "
        f"with {chosen['frequentist']}. On the test part its {' and its '.join(words)}."
    )


def gap_rows(gaps: xr.Dataset, chosen: dict[str, str]) -> list[list[str]]:
    """Differences from the frequentist net with their intervals."""
    lines = []
    for guide in gaps["guide"].values:
        cells = []
        for figure in GAPS:
            part = gaps.sel(guide=guide, figure=figure)
            value, low, high = (float(part[n]) for n in ("difference", "lower", "upper"))
            cells.append(f"{value:+.4f} [{low:+.4f}, {high:+.4f}]")
        lines.append([str(guide).replace("_", "-"), chosen[str(guide)], *cells])
    return lines


GAP_HEAD = ("guide", "recalibration", "NLL less the frequentist's", "ECE less the frequentist's")


def show(study: Study, result: xr.Dataset, gaps: xr.Dataset, chosen: dict[str, str]) -> None:
    """A report on the chosen Bayesian net, and the table of all."""
    guide, seed = chosen["best"], study.options.seed[0]
    learnt_on, held, test = (study.tree(guide, seed, part) for part in PARTS)
    after = recalibrated(chosen[guide], learnt_on, test)
    held_after = recalibrated(chosen[guide], learnt_on, held)
    sets = conformal.predict_sets(
        conformal.calibrate(held_after, study.options.alpha), after, shift_alarm=0
    )
    names = dict.fromkeys(("none", *ELIGIBLE, "isotonic"))
    curves = {name: calibration.pava(recalibrated(name, learnt_on, test)) for name in names}
    sections = [
        Section(
            "recalibration",
            "Before and after recalibration",
            paragraph(
                f"How often {guide.replace('_', '-')} is right against how sure it is: a "
                "calibrated net stays in the grey band."
            )
            + picture(
                calibration_curves.recalibration(curves),
                "Isotonic reliability curves before and after recalibration.",
                wide=True,
            ),
        ),
        Section(
            "set-sizes",
            "Prediction sets",
            paragraph(f"LAC sets after {chosen[guide]} recalibration. {band(study, result)}")
            + picture(prediction_sets.set_sizes(sets), "Histogram of prediction set sizes.")
            + picture(
                prediction_sets.group_coverage(conformal.coverage(sets, after)),
                "Coverage of the prediction sets by true class, with its band.",
            ),
        ),
        Section(
            "table",
            "All guides and recalibrations",
            paragraph(verdict(gaps, chosen))
            + html_table(GAP_HEAD, gap_rows(gaps, chosen))
            + paragraph("Means over seeds, with 95 % bootstrap intervals over cases.")
            + html_table(HEAD, rows(result)),
        ),
    ]
    reliability = {
        str(one).replace("_", "-"): scoring.reliability(
            recalibrated(
                chosen[one], *(study.tree(one, seed, p) for p in ("recalibration", "test"))
            )
        )
        for one in study.options.guide
    }
    report(
        study.folder / "report.html",
        title="Pneumonia on chest X-rays: can the number be trusted?",
        tree=test,
        images=study.images,
        reliability=reliability,
        scores=scoring.score(after),
        sections=sections,
        notes=(
            verdict(gaps, chosen),
            "Children of one hospital; which pictures are of one child is not known, so cases of "
            "training and test may share one.",
        ),
    )


def main(options: Options) -> None:
    """Run the study, print and save its table, write the report."""
    study = Study(options)
    for seed, guide in itertools.product(options.seed, options.guide):
        study.run(guide, seed)
    chosen = choose(study)
    with warnings.catch_warnings():
        # Maps with steps can give a class 0: their NLL is infinite, and the table says so.
        warnings.filterwarnings("ignore", ".*probability exactly 0")
        result = collect(study)
        storage.save(result, study.folder / "table.nc")
        text = [markdown(HEAD, rows(result)), band(study, result)]
        if "best" in chosen and "frequentist" in chosen:
            gaps = differences(study, chosen)
            storage.save(gaps, study.folder / "differences.nc")
            show(study, result, gaps, chosen)
            text += [markdown(GAP_HEAD, gap_rows(gaps, chosen)), verdict(gaps, chosen)]
    (study.folder / "table.md").write_text("\n\n".join(text) + "\n")
    print("\n" + "\n\n".join(text))
    print(f"Wrote {study.folder / 'table.md'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
