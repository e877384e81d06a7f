"""Planted tags: nets that can and cannot use them, and what every attribution method shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from ppl_med import storage
from ppl_med.data import (
    Batches,
    load_malaria,
    load_pneumoniamnist,
    plant,
    standardization,
)
from ppl_med.data.readers import malaria, pneumoniamnist
from ppl_med.data.synthetic.confounders import Association, Kind
from ppl_med.explain import AttributionConstrained, RightReasons
from ppl_med.explain.attribution import attribute
from ppl_med.explain.confounding import dependence, exposure, swap_test
from ppl_med.inference import BernoulliDropout, fit, functions, predict
from ppl_med.models import BayesianClassifier, ConfounderFreeClassifier
from ppl_med.networks import LeNet
from ppl_med.weights import Normal

NETS = ("unconfounded", "confounded", "constrained", "confounder_free")
READERS: dict[str, Callable[[Path], dict[str, dict[str, Any]]]] = {
    "malaria": load_malaria,
    "pneumoniamnist": load_pneumoniamnist,
}
CLASSES = {"malaria": malaria.CLASS_NAMES, "pneumoniamnist": pneumoniamnist.CLASS_NAMES}
METHODS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 16, "tolerance": 0.5},
    "guided_backprop": {},
    "grad_cam": {},
    "lrp": {},
    "occlusion": {"patch": 5},
}
FEATURES = 84  # of LeNet's last hidden layer
LEVEL = 0.95


class Settings(Protocol):
    """What the study reads of the options of the call."""

    data: Path
    kind: Kind
    probability: tuple[float, float]
    cases: int
    explained: int
    epochs: int
    draws: int
    constraint: float
    adversary: float
    part: str
    seed: int
    device: str | None
    smoke: bool
    resume: bool


class Planted:
    """One data set with tags: its arrays, and the nets trained on them.

    Args:
        name: Of the data set.
        options: Of the call.
        folder: Where the nets and posteriors go.
    """

    def __init__(self, name: str, options: Settings, folder: Path) -> None:
        self.name, self.options, self.folder = name, options, folder
        splits = READERS[name](options.data)
        random = np.random.default_rng(options.seed)
        sizes = {"train": options.cases, options.part: options.cases}
        self.plain = {part: _balanced(splits[part], size, random) for part, size in sizes.items()}
        self.loc, self.scale = standardization(self.plain["train"]["image"])
        everywhere = plant(self.plain["train"], options.kind, (1, 1), seed=options.seed)
        self.region = everywhere["confounder_mask"].any(0)

    def arrays(
        self, part: str, association: Association = "as_given", always: bool = False
    ) -> dict[str, Any]:
        """Cases of a part with tags, by the options' probabilities or in all of them."""
        chances = (1.0, 1.0) if always else self.options.probability
        seed = self.options.seed + 1000 * (part != "train")
        marked = plant(
            self.plain[part], self.options.kind, chances, association=association, seed=seed
        )
        kept = ("image", "label", "id", "confounder")
        return {name: marked[name] for name in kept}

    def batches(self, arrays: dict[str, Any], **settings: Any) -> Batches:
        """Standardised batches."""
        given = {"batch_size": 250} | settings
        return Batches(arrays, loc=self.loc, scale=self.scale, **given)

    def images(self, arrays: dict[str, Any]) -> Tensor:
        """All standardised images at once."""
        batches = self.batches(arrays, batch_size=len(arrays["image"]))
        return next(iter(batches))["image"]

    def train(self, net: str) -> tuple[nn.Module, nn.Module, xr.Dataset]:
        """Model, guide and history of one of ``NETS``."""
        options = self.options
        torch.manual_seed(options.seed)
        model, arrays = self._build(net), self.arrays("train", _association(net))
        if net == "constrained":  # what is known once the tag was seen: the corner tells nothing
            shape = (len(arrays["image"]), *self.region.shape)
            arrays["irrelevant"] = np.broadcast_to(self.region, shape).copy()
        guide = BernoulliDropout(model, rate=0.1)
        # The adversary needs many controls per batch, and as many steps as the others have.
        more = 2 if net == "confounder_free" else 1
        print(f"{self.name}: training the {net.replace('_', '-')} net")
        history = fit(
            model,
            guide,
            self.batches(arrays, batch_size=128 * more, shuffle=True, seed=options.seed),
            epochs=options.epochs * more,
            learning_rate=2e-3,
            schedule="cosine",
            device=options.device,
            seed=options.seed,
            checkpoint=self.folder / f"{net}.pt",
            resume=options.resume,
        )
        return model, guide, history

    def _build(self, net: str) -> nn.Module:
        channels, size = self.plain["train"]["image"].shape[1:3]
        lenet, prior, classes = LeNet(channels, 1, size=size), Normal(0.3), CLASSES[self.name]
        if net == "confounder_free":
            return ConfounderFreeClassifier(
                nn.Sequential(lenet.features, *lenet.classifier[:-1]),
                lenet.classifier[-1],
                classes,
                FEATURES,
                weight=self.options.adversary,
                prior=prior,
                likelihood="bernoulli",
            )
        model = BayesianClassifier(lenet, classes, prior, likelihood="bernoulli")
        if net == "constrained":
            constraint = RightReasons(self.options.constraint, score="log_odds")
            return AttributionConstrained(model, [constraint])
        return model

    def predicted(
        self, net: str, pair: tuple[nn.Module, nn.Module], arrays: dict[str, Any], on: str
    ):
        """Posterior of a net on some cases, also saved."""
        tree = predict(
            *pair,
            self.batches(arrays),
            draws=self.options.draws,
            seed=self.options.seed,
            device=self.options.device,
        )
        storage.save(tree, self.folder / f"posterior-{net}-{on}.nc")
        return tree

    def maps(self, pair: tuple[nn.Module, nn.Module]) -> dict[str, xr.Dataset]:
        """Maps of class 1 by every method, on cases of class 1 that all have the tag."""
        arrays = self.tagged()
        image = self.images(arrays).to(next(pair[1].parameters()).device)
        draws = functions(*pair, draws=self.options.draws, seed=self.options.seed)
        black = float(self.images({"image": np.zeros_like(arrays["image"][:1])}).flatten()[0])
        return {
            method: attribute(
                draws,
                image,
                1,
                method=method,
                baseline=black,
                case=arrays["id"],
                keep_draws=True,
                **settings,
            )
            for method, settings in METHODS.items()
        }

    def tagged(self) -> dict[str, Any]:
        """Cases of class 1, every one with the tag."""
        arrays = self.arrays(self.options.part, always=True)
        rows = np.flatnonzero(arrays["label"] == 1)[: self.options.explained]
        return {name: values[rows] for name, values in arrays.items()}

    def exposures(self) -> dict[str, xr.Dataset]:
        """Of every trained net, against the unconfounded one."""
        maps = {net: self.maps(pair) for net, pair in self.pairs.items()}
        self.shown = {net: one["integrated_gradients"] for net, one in maps.items()}
        cases = next(iter(maps[NETS[0]].values())).sizes["case"]
        region = xr.DataArray(
            np.broadcast_to(self.region, (cases, *self.region.shape)), dims=("case", "row", "col")
        )
        return {
            net: exposure(one, region, reference=None if net == NETS[0] else maps[NETS[0]])
            for net, one in maps.items()
        }

    def swap(self, net: str) -> xr.Dataset:
        """What the tag does to the probability of class 1 in cases of class 0."""
        plain, marked = self.plain[self.options.part], self.arrays(self.options.part, always=True)
        rows = np.flatnonzero(plain["label"] == 0)
        images = [
            self.images({"image": one["image"][rows]}).to(
                next(self.pairs[net][1].parameters()).device
            )
            for one in (plain, marked)
        ]
        draws = functions(*self.pairs[net], draws=self.options.draws, seed=self.options.seed)
        return swap_test(draws, *images, 1, case=plain["id"][rows])

    def run(self) -> xr.Dataset:
        """Train, predict, explain; one Dataset over nets and methods."""
        self.pairs, self.histories, trees = {}, {}, {}
        sets = {on: self.arrays(self.options.part, on) for on in ("as_given", "swapped")}
        for net in NETS:
            model, guide, self.histories[net] = self.train(net)
            self.pairs[net] = (model, guide)
            for on, arrays in sets.items():
                trees[net, on] = self.predicted(net, (model, guide), arrays, on)
        self.tree, self.images_shown = trees["confounded", "swapped"], sets["swapped"]["image"]
        self.found = self.exposures()
        self.effects = {net: self.swap(net) for net in NETS}
        rows = [self._row(net, trees, sets) for net in NETS]
        result = xr.concat(rows, xr.DataArray(list(NETS), dims="net", name="net"))
        return result.expand_dims(data=[self.name])

    def _row(self, net: str, trees: dict[Any, Any], sets: dict[str, Any]) -> xr.Dataset:
        """The table's figures of one net."""
        seed, values = self.options.seed, xr.Dataset()
        for on, arrays in sets.items():
            right = correct(trees[net, on], arrays["label"])
            reference = correct(trees[NETS[0], on], arrays["label"])
            for name, figure in (
                (f"accuracy_{on}", balanced(right, arrays["label"], seed)),
                (f"gap_{on}", balanced(right - reference, arrays["label"], seed)),
            ):
                values[name], values[f"{name}_lower"], values[f"{name}_upper"] = figure
        told = dependence(
            _log_odds(trees[net, "swapped"]),
            sets["swapped"]["confounder"],
            controls=sets["swapped"]["label"] == 0,
            mutual_information=False,
            seed=seed,
        )
        effect, shown = self.effects[net], self.found[net]
        copied = [
            *((effect, n) for n in effect if str(n).startswith("expected_")),
            *((shown, n) for n in shown if str(n).startswith("expected_mass")),
            *((shown, n) for n in shown if "auroc" in str(n) and "draw" not in shown[n].dims),
            *((told, n) for n in told if "draw" not in told[n].dims and n != "num_cases"),
        ]
        for source, name in copied:
            values[name] = source[name]
        if net == NETS[0]:
            for name in ("auroc_of_mean", "auroc_of_mean_se"):
                values[name] = xr.full_like(shown["expected_mass_share"], np.nan)
        return values


def correct(tree: xr.DataTree, label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Whether the mixture of draws is right, 1 or 0, (case,)."""
    probs: Any = tree["posterior/probs"]
    return (probs.mean(("chain", "draw")).argmax("class").values == label).astype(float)


def balanced(
    right: NDArray[np.float64], label: NDArray[np.int64], seed: int, replicates: int = 1000
) -> tuple[float, float, float]:
    """Mean over the classes' means, with its bootstrap interval over cases within classes."""
    random, means = np.random.default_rng(seed), []
    for name in np.unique(label):
        own = right[label == name]
        means.append(own[random.integers(len(own), size=(replicates, len(own)))].mean(1))
    low, high = np.quantile(np.mean(means, 0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = np.mean([right[label == name].mean() for name in np.unique(label)])
    return float(value), float(low), float(high)


def _log_odds(tree: xr.DataTree) -> xr.DataArray:
    probs: Any = tree["posterior/probs"]
    return np.log(probs.isel({"class": 1}, drop=True) / probs.isel({"class": 0}, drop=True))


def _association(net: str) -> Association:
    return "unconfounded" if net == "unconfounded" else "as_given"


def _balanced(arrays: dict[str, Any], size: int, random: np.random.Generator) -> dict[str, Any]:
    """As many cases of class 0 as of class 1, at most ``size`` in all."""
    rows = [np.flatnonzero(arrays["label"] == name) for name in (0, 1)]
    each = min(size // 2, *map(len, rows))
    chosen = np.sort(np.concatenate([random.permutation(one)[:each] for one in rows]))
    return {name: arrays[name][chosen] for name in ("image", "label", "id")}
