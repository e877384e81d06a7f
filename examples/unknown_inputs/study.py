"""Training of every run, and what every score says of every set."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from sklearn.covariance import EmpiricalCovariance

from ppl_med import storage
from ppl_med.analysis import ood
from ppl_med.data import Batches, standardization
from ppl_med.explain import choose_epsilon, odin
from ppl_med.inference import (
    BernoulliDropout,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    functions,
    load,
    predict,
)
from ppl_med.models import BayesianClassifier, BayesianSegmenter
from ppl_med.weights import Normal
from unknown_inputs.sources import SOURCES, Source, some

BASELINES = ("untrained", "grey_levels")
CONFIDENCE = ("mcp", "entropy", "expected_entropy", "mutual_information")
LOGITS = ("energy", "max_logit")
FEATURES = ("mahalanobis", "relative_mahalanobis", "knn", "residual")
LEARNT_FROM, ODIN_DRAWS, SMOKE = 1000, 2, 70


class Options(Protocol):
    """The options of the call that runs need."""

    data: Path
    second_site: Path | None
    device: str | None
    draws: int
    smoke: bool
    resume: bool


class Study:
    """One source: its data and its runs.

    Args:
        options: Of the call.
        name: Of the source.
        folder: Where the runs go.
    """

    def __init__(self, options: Options, name: str, folder: Path) -> None:
        self.options, self.name, self.folder = options, name, folder
        extra = {"second_site": options.second_site} if name == "white_cells" else {}
        self.source: Source = SOURCES[name](options.data, **extra)
        self.loc, self.scale = standardization(self.source.parts["train"]["image"])
        self.sets = {
            "train": some(self.source.parts["train"], LEARNT_FROM),
            "val": self.source.parts["val"],
            "test": self.source.parts["test"],
            **{title: arrays for title, (_, arrays) in self.source.unlike.items()},
        }
        if options.smoke:
            self.sets = {title: some(arrays, SMOKE) for title, arrays in self.sets.items()}

    def batches(self, arrays: dict[str, Any], **settings: Any) -> Batches:
        """Standardised batches of what a net reads."""
        names = ("image", self.source.observation, "id", "patient")
        kept = {name: arrays[name] for name in names if name in arrays}
        settings = {"batch_size": 128, "loc": self.loc, "scale": self.scale} | settings
        return Batches(kept, **settings)

    def build(self, guide: str, seed: int) -> tuple[Any, Any, dict[str, Any]]:
        """Model, guide and settings of ``fit``."""
        source, smoke = self.source, self.options.smoke
        torch.manual_seed(seed)
        kind = BayesianSegmenter if source.observation == "mask" else BayesianClassifier
        model = kind(
            source.net(),
            source.classes,
            prior=Normal(scale=1.0 if guide == "last_layer" else 0.3),
            where="last_layer" if guide == "last_layer" else None,
            **source.settings,
        )
        settings: dict[str, Any] = {
            "epochs": 1 if smoke else source.epochs,
            "learning_rate": source.rate,
            "schedule": "cosine",
        }
        point = partial(PointEstimate, use_prior=False)
        if guide == "mean_field":
            start = point(model)
            load(self.path("point", seed) / "checkpoint.pt", model, start)
            program: Any = MeanFieldNormal(model, init_scale=0.05, estimator="shared", start=start)
            settings["learning_rate"] = source.rate / 2
        elif guide == "last_layer":
            program = MeanFieldNormal(model, init_scale=0.3, estimator="auto")
        elif guide == "dropout":
            program = BernoulliDropout(model, rate=0.1)
        elif guide == "ensemble":
            program = Ensemble(model, point, 2 if smoke else source.members, seed=1000 * seed + 1)
        else:
            program = point(model)
        if guide in ("point", "ensemble"):
            settings["optimizer"] = partial(_decayed, rate=source.rate)
        return model, program, settings

    def path(self, guide: str, seed: int) -> Path:
        """Folder of one run."""
        return self.folder / f"{self.name}-{guide}-{seed}"

    def trained(self, guide: str, seed: int) -> tuple[Any, Any]:
        """Model and guide, trained now or by an earlier call."""
        if guide == "mean_field":
            self.trained("point", seed)
        model, program, settings = self.build(guide, seed)
        folder = self.path(guide, seed)
        done = folder / "history.nc"
        if guide == "untrained":
            return model, program
        if done.exists():
            load(folder / "checkpoint.pt", model, program)
            return model, program
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{self.name}: {guide}, seed {seed}", flush=True)
        arrays = self.source.parts["train"]
        if self.options.smoke:
            arrays = some(arrays, SMOKE)
        batches = self.batches(
            arrays,
            batch_size=min(self.source.batch_size, len(arrays["image"])),
            shuffle=True,
            drop_last=True,
        )
        history = fit(
            model, program, batches, device=self.options.device, seed=seed,
            checkpoint=folder / "checkpoint.pt", resume=self.options.resume, **settings,
        )  # fmt: skip
        storage.save(history, done)
        return model, program

    def draws(self, guide: str) -> int:
        """Posterior draws per chain; a point estimate has one function."""
        return 1 if guide in ("point", "ensemble", "untrained") else self.options.draws

    def predicted(
        self, model: Any, guide: Any, name: str, seed: int, arrays: dict[str, Any], **settings: Any
    ) -> xr.DataTree:
        """The posterior of some cases."""
        return predict(
            model, guide, self.batches(arrays), draws=self.draws(name), seed=seed,
            device=self.options.device, progress=False, **settings,
        )  # fmt: skip

    def run(self, guide: str, seed: int) -> dict[str, xr.Dataset]:
        """Scores (score, case), p-values and, of the test part, which cases are predicted wrongly.

        Read from the run's folder where an earlier call left them.
        """
        folder = self.path(guide, seed)
        files = {title: folder / f"found-{title.replace(' ', '-')}.nc" for title in self.judged()}
        if all(file.exists() for file in files.values()):
            return {title: storage.load(file) for title, file in files.items()}  # type: ignore[misc]
        folder.mkdir(parents=True, exist_ok=True)
        if guide == "grey_levels":
            return self._without_a_net(files)
        model, program = self.trained(guide, seed)
        keep = tuple(f"feature:{layer}" for layer in self.source.layers)
        if self.source.observation == "label":
            keep = ("logit", *keep)
        trees = {
            title: self.predicted(model, program, guide, seed, arrays, keep=keep)
            for title, arrays in self.sets.items()
        }
        found: dict[str, dict[str, xr.Dataset]] = {title: {} for title in self.judged()}
        for name, one in self._scores(trees, guide):
            for title in found:
                found[title][name] = one(title)
        if self.source.observation == "label":
            for title, one in self._odin(model, program, guide, seed).items():
                found[title]["odin"] = one
        result = {}
        for title, file in files.items():
            result[title] = _stacked(found[title])
            if title == "test" and self.source.observation == "label":
                result[title]["wrong"] = ("case", _wrong(trees[title]))
            storage.save(result[title], file)
        return result

    def _without_a_net(self, files: dict[str, Path]) -> dict[str, xr.Dataset]:
        """Mahalanobis distance of grey levels and sharpness: what needs no network at all."""
        learnt = EmpiricalCovariance().fit(grey_levels(self.sets["train"]["image"]))
        result = {}
        for title, file in files.items():
            arrays = self.sets[title]
            values = learnt.mahalanobis(grey_levels(arrays["image"]))
            found = xr.Dataset({"score": ("case", values)}, {"case": arrays["id"]})
            result[title] = _stacked({"mahalanobis": found})
            storage.save(result[title], file)
        return result

    def judged(self) -> list[str]:
        """Names of the sets that are scored: those that nothing was learnt from."""
        return [title for title in self.sets if title not in ("train", "val")]

    def _scores(self, trees: dict[str, xr.DataTree], guide: str) -> Iterator[tuple[str, Any]]:
        """Every score of stored outputs by name, as a function of the set."""
        masks, last = self.source.observation == "mask", self.source.layers[-1]
        names = [*CONFIDENCE, *FEATURES] if masks else [*CONFIDENCE, *LOGITS, *FEATURES, "vim"]
        train, val = trees["train"], trees["val"]
        if masks:  # of one class: no distance is relative to another
            names.remove("relative_mahalanobis")
        for name in names:
            if name in (*FEATURES, "vim"):
                reference = ood.fit_reference(name, train, held_out=val, layer=last)
            else:
                reference = ood.fit_reference(name, val)
            yield name, lambda title, own=reference: ood.score(trees[title], own)
        reference = ood.fit_novelty(train, val)
        novel = {title: ood.novelty(trees[title], reference) for title in self.judged()}
        for component in next(iter(novel.values()))["component"].values:
            score, _, layer = str(component).partition(" of ")
            if layer and layer != last:
                yield (
                    f"{score}, layer {self.source.layers.index(layer) + 1}",
                    lambda title, own=component: novel[title][["case"]].assign(
                        score=novel[title]["component_score"].sel(component=own, drop=True)
                    ),
                )
        yield "novelty", lambda title: novel[title]

    def _odin(self, model: Any, guide: Any, name: str, seed: int) -> dict[str, xr.Dataset]:
        """ODIN, its step chosen on validation images alone."""
        number = min(ODIN_DRAWS, self.draws(name))
        draws = functions(model, guide, draws=number, seed=seed)
        device = next(guide.parameters()).device

        def image(arrays: dict[str, Any]) -> torch.Tensor:
            batches = self.batches(arrays, batch_size=len(arrays["image"]))
            return next(iter(batches))["image"].to(device)

        val = image(some(self.sets["val"], 100))
        step = float(choose_epsilon(draws, val).attrs["best"])
        ids = {title: list(self.sets[title]["id"]) for title in self.judged()}
        return {
            title: odin(draws, image(self.sets[title]), epsilon=step, case=ids[title])
            for title in ids
        }


def grey_levels(image: np.ndarray) -> np.ndarray:
    """Mean, spread, darkest and brightest levels and sharpness of images (case, figure)."""
    values = image.reshape(len(image), -1).astype(np.float64)
    steps = [np.abs(np.diff(image.astype(np.float64), axis=axis)) for axis in (-1, -2)]
    figures = [
        values.mean(1),
        values.std(1),
        *np.quantile(values, [0.05, 0.5, 0.95], axis=1),
        *(one.reshape(len(image), -1).mean(1) for one in steps),
    ]
    return np.stack(figures, 1)


def _decayed(parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.1)


def _wrong(tree: xr.DataTree) -> np.ndarray:
    """Which cases are predicted wrongly (case,)."""
    probs = tree["posterior/probs"].mean(("chain", "draw")).transpose("case", "class")
    return np.asarray(probs.values.argmax(1) != tree["observed_data/label"].values)


def _stacked(found: dict[str, xr.Dataset]) -> xr.Dataset:
    """All scores of the cases of a set, dims (score, case)."""
    names = list(found)
    case = found[names[0]]["case"].values
    values = np.stack([found[name]["score"].values for name in names])
    pvalue = [
        found[name]["pvalue"].values if "pvalue" in found[name] else np.full(len(case), np.nan)
        for name in names
    ]
    return xr.Dataset(
        {"value": (("score", "case"), values), "pvalue": (("score", "case"), np.stack(pvalue))},
        {"score": names, "case": case},
    )
