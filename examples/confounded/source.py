"""A confounder that is real: all COVID-19 images are of another source than the healthy ones.

``cxr_nih`` holds X-rays of the NIH without findings and with pneumonia, and COVID-19 cases from
publications of other hospitals. A net that is to tell COVID-19 from no finding can tell the
sources instead. It is trained and tested in folds by patient; then the outer frame of the image,
which shows no lung, is exchanged between the sources. As a frame that does not belong is odd in
itself, frames are also exchanged within each source.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from ppl_med import storage
from ppl_med.analysis import spray
from ppl_med.analysis.statistics.draw_ranks import RANKS
from ppl_med.data import Batches, mirror_with_mask, standardization
from ppl_med.data.readers.folders import find_place
from ppl_med.data.readers.image_files import read_rgb
from ppl_med.explain.attribution import attribute
from ppl_med.explain.confounding import swap_effects, swap_frame, swap_test
from ppl_med.inference import BernoulliDropout, fit, functions, predict
from ppl_med.models import BayesianClassifier
from ppl_med.networks import LeNet
from ppl_med.weights import Normal

CLASSES = ("no finding, NIH", "COVID-19, other source")
COVID = "ood_covid19_cohen"
SIDE = 64  # pixels
FRAME = 6  # pixels on each side: 34 % of the image
REPEATS = 8  # of each COVID-19 image in an epoch
SWAPS = {
    "NIH gets a frame of the other source": (0, 1),
    "NIH gets a frame of the NIH": (0, 0),
    "COVID-19 gets a frame of the NIH": (1, 0),
    "COVID-19 gets a frame of its own source": (1, 1),
}


class Settings(Protocol):
    """What the study reads of the options of the call."""

    data: Path
    draws: int
    folds: int
    source_epochs: int
    healthy: int
    explained: int
    seed: int
    device: str | None
    smoke: bool
    resume: bool


def load(options: Settings) -> dict[str, dict[str, Any]]:
    """Images (case, channel, row, col) uint8 with patients: "train" of both sources, "pneumonia".

    The NIH's training and validation parts; its pneumonia cases are never trained on.
    """
    place = find_place(
        options.data, "cxr_nih", (COVID, "train", "val"), module="examples/confounded/source.py"
    )
    healthy = [*sorted((place / "train" / "No_findings").glob("*.jpg"))]
    ill = sorted((place / "val" / "Pneumonia").glob("*.jpg"))
    other = sorted((place / COVID).glob("*.jpg"))
    table = (place / COVID / "index.csv").read_text().splitlines()[1:]
    patient = {line.split(",")[0]: f"C{line.split(',')[1]}" for line in table}
    healthy = healthy[: options.healthy]
    found = _arrays([*healthy, *other], [0] * len(healthy) + [1] * len(other), patient)
    return {"train": found, "pneumonia": _arrays(ill, [0] * len(ill), patient)}


def _arrays(paths: list[Path], label: list[int], patient: dict[str, str]) -> dict[str, Any]:
    images = [read_rgb(path, (SIDE, SIDE))[:1] for path in paths]
    return {
        "image": np.stack(images),
        "label": np.array(label),
        "id": np.array([path.stem for path in paths]),
        "patient": np.array([patient.get(path.name, path.stem.split("_")[0]) for path in paths]),
    }


class Source:
    """Nets of all folds, and what exchanging frames does to them.

    Args:
        options: Of the call.
        folder: Where the nets and posteriors go.
    """

    def __init__(self, options: Settings, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.arrays = load(options)
        self.cases = self.arrays["train"]
        self.fold = _folds(self.cases, options.folds, options.seed)
        self.frame = np.ones((SIDE, SIDE), bool)
        self.frame[FRAME:-FRAME, FRAME:-FRAME] = False

    def train(self, fold: int) -> tuple[nn.Module, nn.Module, float, float]:
        """Model, guide, loc and scale of a fold's training cases."""
        options, random = self.options, np.random.default_rng(self.options.seed)
        rows = np.flatnonzero(self.fold != fold)
        loc, scale = (value.item() for value in standardization(self.cases["image"][rows]))
        again = np.repeat(rows, np.where(self.cases["label"][rows] == 1, REPEATS, 1))
        random.shuffle(again)
        torch.manual_seed(options.seed)
        lenet = LeNet(1, 1, size=SIDE)
        model = BayesianClassifier(lenet, CLASSES, Normal(0.3), likelihood="bernoulli")
        guide = BernoulliDropout(model, rate=0.1)
        batches = Batches(
            {name: self.cases[name][again] for name in ("image", "label")},
            batch_size=64,
            shuffle=True,
            seed=options.seed,
            transform=mirror_with_mask,
            loc=loc,
            scale=scale,
        )
        print(f"cxr_nih: training fold {fold + 1} of {options.folds}")
        fit(
            model,
            guide,
            batches,
            epochs=options.source_epochs,
            learning_rate=2e-3,
            schedule="cosine",
            device=options.device,
            seed=options.seed,
            checkpoint=self.folder / f"fold-{fold}.pt",
            resume=options.resume,
        )
        return model, guide, loc, scale

    def run(self) -> xr.Dataset:
        """Train and test all folds.

        Returns:
            Over ``swap``: the effect of each exchange of frames on the probability of COVID-19;
            ``source_effect``, an exchange between the sources less one within; balanced accuracy
            and the share of pneumonia cases that are called COVID-19.
        """
        parts: dict[str, list[xr.Dataset]] = {name: [] for name in SWAPS}
        called, right, kept = [], [], []
        for fold in range(self.options.folds):
            model, guide, loc, scale = self.train(fold)
            rows = np.flatnonzero(self.fold == fold)
            test = {name: values[rows] for name, values in self.cases.items()}
            settings = {"batch_size": 250, "loc": loc, "scale": scale}
            seeds = {"draws": self.options.draws, "seed": self.options.seed}
            tree = predict(
                model, guide, Batches(test, **settings), device=self.options.device, **seeds
            )
            storage.save(tree, self.folder / f"posterior-fold-{fold}.nc")
            probs: Any = tree["posterior/probs"]
            right.append(probs.mean(("chain", "draw")).argmax("class").values == test["label"])
            kept.append(rows)
            draws = functions(model, guide, **seeds)
            device = next(guide.parameters()).device
            image, ill = (
                next(iter(Batches({"image": values}, **settings | {"batch_size": len(values)})))[
                    "image"
                ].to(device)
                for values in (test["image"], self.arrays["pneumonia"]["image"])
            )
            with torch.no_grad():
                called.append([(one(ill) > 0).double().mean().item() for one in draws])
            for name, (of, donor) in SWAPS.items():
                parts[name].append(self._swap(draws, image, test, of, donor, fold))
            if fold == 0:
                self.explained = np.concatenate(
                    [
                        np.flatnonzero(self.cases["label"] == 1),
                        np.flatnonzero(self.cases["label"] == 0),
                    ]
                )[: self.options.explained]
                self.maps = self._maps(draws, device, loc, scale)
        self.tree, self.rows = tree, np.concatenate(kept)
        return self._joined(parts, np.concatenate(right), np.array(called))

    def _swap(
        self,
        draws: Any,
        image: Tensor,
        test: dict[str, Any],
        of: int,
        donor: int,
        fold: int,
    ) -> xr.Dataset:
        """Give a source's test images frames of a source's test images, never their own."""
        random = np.random.default_rng([self.options.seed, fold, of, donor])
        rows, donors = (np.flatnonzero(test["label"] == name) for name in (of, donor))
        chosen = [
            random.choice(donors[test["patient"][donors] != test["patient"][row]]) for row in rows
        ]
        swapped = swap_frame(image[rows], image[chosen], FRAME)
        return swap_test(draws, image[rows], swapped, 1, case=test["id"][rows])

    def _maps(self, draws: Any, device: torch.device, loc: float, scale: float) -> xr.DataArray:
        """Integrated gradients from the mean intensity, (chain, draw, case, channel, row, col).

        From black, padding would have no attribution whatever the net does with it. Of COVID-19
        cases and some of the NIH's, among them those that the net has seen: what is looked for is
        what it has learnt.
        """
        chosen = {name: self.cases[name][self.explained] for name in ("image", "id")}
        batches = Batches(chosen, batch_size=len(self.explained), loc=loc, scale=scale)
        found = attribute(
            draws,
            next(iter(batches))["image"].to(device),
            1,
            steps=16,
            tolerance=0.5,
            case=chosen["id"],
            keep_draws=True,
        )
        return found["attribution"]

    def _joined(
        self,
        parts: dict[str, list[xr.Dataset]],
        right: NDArray[np.bool_],
        called: NDArray[np.float64],
    ) -> xr.Dataset:
        """Folds joined along the case; draw s of one fold goes with draw s of the others."""
        patients = dict(zip(self.cases["id"].tolist(), self.cases["patient"].tolist(), strict=True))
        self.effects, between = {}, {}
        for name, found in parts.items():
            whole = xr.concat([one[["before", "after"]] for one in found], "case")
            group = [patients[one] for one in whole["case"].values.tolist()]
            self.effects[name] = swap_effects(whole["before"], whole["after"], group=group)
            between[name] = group
        names = list(SWAPS)
        for label, (other, own) in enumerate(((names[0], names[1]), (names[2], names[3]))):
            # The same cases with both frames, so that only the donor's source differs.
            self.effects[f"difference, {('NIH', 'COVID-19')[label]}"] = swap_effects(
                self.effects[own]["after"], self.effects[other]["after"], group=between[other]
            )
        figures = ("expected_effect", "probability_positive")
        rows = [
            one[[name for name in one if str(name).startswith(figures)]]
            for one in self.effects.values()
        ]
        swaps = xr.DataArray(list(self.effects), dims="swap", name="swap")
        result = xr.concat(rows, swaps, combine_attrs="drop")
        label = self.cases["label"][self.rows]
        result["sensitivity"], result["specificity"] = (
            right[label == 1].mean(),
            right[label == 0].mean(),
        )
        result["pneumonia_called_covid"] = called.mean()
        source = self.cases["label"][self.explained]
        self.sources = np.array(["NIH", "other source"])[source]
        self.clusters = spray.clusters(
            self.maps,
            self.sources,
            neighbours=3 if self.options.smoke else 7,
            part="absolute",
        )
        relevance = abs(self.maps).sum("channel")
        inside = relevance.where(xr.DataArray(self.frame, dims=("row", "col"))).sum(("row", "col"))
        share = (inside / relevance.sum(("row", "col"))).isel(case=source == 1).mean("case")
        result["mass_on_frame"] = share.mean()
        for end, place in (("lower", 0.025), ("upper", 0.975)):
            reached = share.quantile(place, method=RANKS)
            result[f"mass_on_frame_{end}"] = reached.drop_vars("quantile")
        result["frame_area"] = self.frame.mean()
        return result


def _folds(cases: dict[str, Any], number: int, seed: int) -> NDArray[np.int64]:
    """Fold of every case, (case,): patients whole, each source spread evenly."""
    random, fold = np.random.default_rng(seed), np.empty(len(cases["label"]), np.int64)
    for label in (0, 1):
        own = cases["label"] == label
        names, counts = np.unique(cases["patient"][own], return_counts=True)
        sizes, order = np.zeros(number), random.permutation(len(names))
        for name in order[np.argsort(-counts[order], kind="stable")]:
            place = int(sizes.argmin())
            sizes[place] += counts[name]
            fold[own & (cases["patient"] == names[name])] = place
    return fold
