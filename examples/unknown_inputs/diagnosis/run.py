"""The study from end to end."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from diagnosis.options import Name, Options
from digit_files import read_idx
from torch import Tensor, nn

from ppl_med import storage
from ppl_med.analysis import shift
from ppl_med.analysis.statistics.binning import clopper_pearson
from ppl_med.data import Batches, load_malaria, load_pneumoniamnist, standardization
from ppl_med.data.shifts import corrupt, hold_out_class, resample_labels
from ppl_med.inference import PointEstimate, fit, predict
from ppl_med.models import BayesianClassifier
from ppl_med.storage import open_run
from ppl_med.weights import Normal

Arrays = dict[str, Any]
LAYERS = ("first", "second", "units")
WORSE = ("contrast_down", "gaussian_blur", "gaussian_noise")
SIZES = {"mnist": (400, 300), "pneumoniamnist": (260, 200), "malaria": (400, 300)}
TRAIN = {"mnist": 3000, "pneumoniamnist": 3000, "malaria": 4000}


class SmallCNN(nn.Module):
    """Two convolutions, a linear layer, logits."""

    def __init__(self, image: tuple[int, int, int], num_outputs: int) -> None:
        super().__init__()
        channels, *size = image
        self.first = nn.Sequential(nn.Conv2d(channels, 16, 5, stride=2, padding=2), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU())
        rows, cols = (-(-length // 4) for length in size)
        self.units = nn.Sequential(nn.Flatten(), nn.Linear(32 * rows * cols, 32), nn.ReLU())
        self.head = nn.Linear(32, num_outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images."""
        return self.head(self.units(self.second(self.first(image))))


def read_digits(folder: Path, seed: int) -> dict[str, Arrays]:
    """MNIST: of the training file 3000 cases to train, 2000 val; the rest and t10k test."""
    files = [read_idx(folder, name) for name in ("train", "t10k")]
    sizes = [len(one["label"]) for one in files]
    order = np.random.default_rng(seed).permutation(sizes[0])
    others = sizes[0] + np.arange(sizes[1])
    ends = {
        "train": order[:3000],
        "val": order[3000:5000],
        "test": np.concatenate([order[5000:], others]),
    }
    image, label = (np.concatenate([one[name] for one in files]) for name in ("image", "label"))
    return {
        part: {"image": image[rows], "label": label[rows], "id": np.array([f"m{i}" for i in rows])}
        for part, rows in ends.items()
    }


def read(name: Name, options: Options) -> dict[str, Arrays]:
    """The parts of a data set: images, labels, ids."""
    if name == "mnist":
        parts = read_digits(options.data / "mnist", options.seed)
    else:
        load = load_malaria if name == "malaria" else load_pneumoniamnist
        parts = dict(load(options.data))
    random = np.random.default_rng(options.seed)
    rows = np.sort(random.permutation(len(parts["train"]["label"]))[: TRAIN[name]])
    found = {part: {key: parts[part][key] for key in ("image", "label", "id")} for part in parts}
    return found | {"train": take(found["train"], rows)}


def take(arrays: Arrays, rows: np.ndarray) -> Arrays:
    """Some of the cases."""
    return {key: value[rows] for key, value in arrays.items()}


class Net:
    """A trained net and what it says of the cases to draw from, as they are and made worse."""

    def __init__(self, options: Options, name: Name, held_out: int | None) -> None:
        parts = read(name, options)
        train, pool = parts["train"], parts[options.part]
        if held_out is not None:
            inside, anew, _ = hold_out_class(train["label"], held_out)
            train = take(train, inside) | {"label": anew}
        if options.smoke:
            train = take(train, np.arange(200))
        loc, scale = standardization(train["image"])
        settings: dict[str, Any] = {"loc": loc, "scale": scale, "batch_size": 500}
        classes = tuple(f"class {k}" for k in range(int(train["label"].max()) + 1))
        torch.manual_seed(options.seed)
        net = SmallCNN(train["image"].shape[1:], len(classes))
        model = BayesianClassifier(net, classes, prior=Normal(scale=1.0))
        guide = PointEstimate(model, use_prior=False)
        fit(
            model,
            guide,
            Batches(train, **settings | {"batch_size": 50}, shuffle=True),
            epochs=1 if options.smoke else options.epochs,
            learning_rate=2e-3,
            device=options.device,
            seed=options.seed,
            progress=False,
        )
        own = pool["label"]
        self.unknown = np.flatnonzero(own == held_out)
        self.known = np.flatnonzero(own != held_out)
        self.label = own if held_out is None else np.where(own > held_out, own - 1, own)
        self.label = np.where(own == held_out, -1, self.label)

        def outputs(arrays: Arrays) -> xr.DataTree:
            return predict(
                model,
                guide,
                Batches(arrays, **settings),
                draws=1,
                seed=options.seed,
                device=options.device,
                keep=tuple(f"feature:{layer}" for layer in LAYERS),
            )

        self.train = outputs(train)
        pool = {"image": pool["image"], "id": pool["id"]}
        self.trees = {"": outputs(pool)}
        for worse in WORSE:
            image = corrupt(pool["image"], worse, options.severity, seed=options.seed)
            self.trees[worse] = outputs(pool | {"image": image})
        said = self.trees[""]["posterior/probs"].values[0, 0, self.known].argmax(1)
        print(f"{name}, unknown {held_out}: accuracy {(said == self.label[self.known]).mean():.3f}")

    def held_out(self, rows: np.ndarray) -> xr.DataTree:
        """Cases as they are, with their labels."""
        tree = self.trees[""].isel(case=rows)
        ids = {"case": tree["posterior/probs"]["case"].values}
        labels = xr.Dataset({"label": ("case", self.label[rows])}, ids)
        return tree.assign({"observed_data": xr.DataTree(labels)})


def draw(net: Net, kind: str, repeat: int, sizes: tuple[int, int], options: Options) -> Any:
    """Reference cases and new ones, shifted: rows of the reference, and a tree."""
    random = np.random.default_rng([options.seed, repeat, shift.VERDICTS.index(kind)])
    known = random.permutation(net.known)
    reference, rest = np.sort(known[: sizes[0]]), known[sizes[0] :]
    rows, worse = rest[: sizes[1]], ""
    if kind == "covariate":
        turn = repeat // len(options.digits) if len(net.unknown) else repeat
        worse = WORSE[turn % len(WORSE)]  # every net meets all
    if kind == "semantic":
        new = random.permutation(net.unknown)[: round(options.unknown * sizes[1])]
        rows = np.concatenate([rows[: sizes[1] - len(new)], new])
    if kind == "label":
        rows = rest[_other_shares(net.label[rest], sizes[1], random)]
    return reference, net.trees[worse].isel(case=np.sort(rows))


def _other_shares(label: np.ndarray, number: int, random: np.random.Generator) -> np.ndarray:
    """Rows of other shares: of two classes 1.25 times the rarer's and 0.15; else Dirichlet(1)."""
    count = np.bincount(label)
    share = count / count.sum()
    if len(share) == 2:
        rarer = int(share.argmin())
        share[rarer] = 1.25 * share[rarer] + 0.15
        share[1 - rarer] = 1 - share[rarer]
    else:
        share = random.dirichlet(np.ones(len(share)))
        share = np.minimum(share, 0.9 * count / number)
        share /= share.sum()
    most = int((count / np.maximum(share, 1e-9)).min())
    wanted = {k: float(part) for k, part in enumerate(share / share.sum())}
    seed = int(random.integers(2**31))
    return resample_labels(label, wanted, number=min(number, most), seed=seed)


def study(options: Options, name: Name) -> xr.Dataset:
    """All repeats on one data set."""
    digits = options.digits if name == "mnist" else (None,)
    kinds = shift.VERDICTS if name == "mnist" else shift.VERDICTS[:3]
    sizes = (80, 60) if options.smoke else SIZES[name]
    found: dict[str, list[xr.Dataset]] = {kind: [] for kind in kinds}
    for place, digit in enumerate(digits):
        net = Net(options, name, digit)
        for repeat in range(place, options.repeats, len(digits)):
            for kind in kinds:
                rows, tree = draw(net, kind, repeat, sizes, options)
                held_out = net.held_out(rows)
                # Cases are drawn one by one from one pool, whosever they are.
                reference = shift.fit_reference(net.train, held_out=held_out, group="case")
                one = shift.diagnose(
                    tree, reference, group="case", permutations=499, resamples=199, seed=repeat
                )
                found[kind].append(one.drop_dims(["case", "class"]))
        print(f"{name}, unknown {digit}: {len(found['none'])} of {options.repeats} repeats")
    by_kind = [xr.concat(ones, "repeat") for ones in found.values()]
    joined = xr.concat(by_kind, "planted", coords="minimal", compat="override")
    return joined.assign_coords(planted=list(kinds)).assign_attrs(data=name, part=options.part)


def counted(result: xr.Dataset) -> xr.DataArray:
    """How often every verdict was given, (planted, verdict)."""
    counts = [(result["verdict"] == verdict).sum("repeat") for verdict in shift.VERDICTS]
    return xr.concat(counts, "verdict").T.assign_coords(verdict=list(shift.VERDICTS))


def page(tables: dict[str, xr.DataArray]) -> str:
    """The tables as text."""
    lines = []
    for name, table in tables.items():
        number = int(table[0].sum())
        lines += [
            f"## {name}",
            "",
            f"Named (columns) where planted (rows), of {number} repeats each.",
            "",
        ]
        lines += ["| planted | " + " | ".join(shift.VERDICTS) + " | right, 95 % interval |"]
        lines += ["|---|" + "---|" * (len(shift.VERDICTS) + 1)]
        for kind in map(str, table["planted"].values):
            row = table.sel(planted=kind)
            hits = np.array(float(row.sel(verdict=kind)))
            low, high = clopper_pearson(hits, np.array(float(number)), 0.95)
            cells = " | ".join(str(int(value)) for value in row.values)
            lines += [f"| {kind} | {cells} | {hits / number:.0%} ({low:.0%} to {high:.0%}) |"]
        lines += [""]
    return "\n".join(lines)


def picture(tables: dict[str, xr.DataArray]) -> Any:
    """Shares of the verdicts, one panel a data set."""
    figure, axes = plt.subplots(
        1, len(tables), figsize=(4.2 * len(tables), 3.8), squeeze=False, layout="constrained"
    )
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        share = table.values / table.values.sum(1, keepdims=True)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, col), value in np.ndenumerate(table.values):
            colour = "white" if share[row, col] > 0.5 else "black"
            axis.text(col, row, str(int(value)), ha="center", va="center", color=colour)
        axis.set_xticks(range(table.shape[1]), list(table["verdict"].values), rotation=30)
        axis.set_yticks(range(table.shape[0]), list(table["planted"].values))
        axis.set(title=name, xlabel="named", ylabel="planted")
    return figure


def main(options: Options) -> None:
    """Run the study."""
    folder = open_run(options.out, resume=False)
    if options.smoke:
        options.repeats, options.digits = 2, options.digits[:1]
    results = {}
    for name in options.sets:
        results[name] = study(options, name)
        storage.save(results[name], folder / f"diagnosis-{name}.nc")
    tables = {name: counted(result) for name, result in results.items()}
    text = page(tables)
    storage.write_text(folder / "diagnosis.md", text)
    picture(tables).savefig(folder / "diagnosis.png", dpi=120)
    print(text)
