"""Counterfactuals: what would have to differ for the network to see a healthy cell, or a parasite?

Three answers on malaria cells (or chest X-rays), under a Bayesian network:

    minimal perturbation   the smallest change of the image; an adversarial attack
    sparse additive map    a change of few pixels
    latent                 the image of the other class that a conditional VAE generates from the
                           case's code

Each is judged by posterior draws that the search did not see (does the class flip?), by another
network, of another architecture and seed (does it flip there too, or was it an attack on one net?),
and by another VAE, trained apart from the one that generates (how likely is the image, in nats?).
The explained cases are test cases that the network gets right. Finished training is not repeated
with --resume.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
import xarray as xr
from torch import Tensor
from torch.nn.functional import interpolate

from ppl_med import storage
from ppl_med.analysis import scoring
from ppl_med.data import (
    Batches,
    flips_and_turns,
    load_malaria,
    load_pneumoniamnist,
    malaria,
    pneumoniamnist,
    standardization,
)
from ppl_med.explain import latent_counterfactual, minimal_perturbation, sparse_additive
from ppl_med.explain.posterior_predictive import PosteriorPredictive
from ppl_med.explain.realism import log_density
from ppl_med.inference import ConditionalNormal, MeanFieldNormal, fit, functions, predict
from ppl_med.models import BayesianClassifier, ConditionalVAE
from ppl_med.networks import CompactCNN, LeNet
from ppl_med.plots.counterfactual import side_by_side
from ppl_med.plots.page import Section, paragraph, picture
from ppl_med.plots.page import table as html_table
from ppl_med.plots.report import report
from ppl_med.priors import Normal
from ppl_med.runs import open_run

Name = Literal["malaria", "pneumonia"]
CLASSES = {"malaria": malaria.CLASS_NAMES, "pneumonia": pneumoniamnist.CLASS_NAMES}
SIZES = {"malaria": 32, "pneumonia": 28}
NAIVE = ("minimal perturbation", "sparse additive map")
GENERATIVE = ("latent",)
SHOWN = 3  # cases of each class in the figure
PARTICLES = 64
LOOKED_AT = 600  # cases of the part: some are explained, others tell what real images score


@dataclass
class Options:
    """Train two networks and two VAEs, and ask for counterfactuals of three kinds."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds malaria/malaria.npz; by default what PPL_MED_DATA names."""
    dataset: tuple[Name, ...] = ("malaria",)
    """Which cells or X-rays: malaria, pneumonia (pneumoniamnist/pneumoniamnist.npz) or both."""
    part: Literal["test", "val"] = "test"
    """Whose cases are explained; val is for trying settings."""
    cases: int = 16
    """Cases of each class to explain."""
    draws: int = 8
    """Posterior draws that the search sees; four times as many judge."""
    steps: int = 1000
    """Training steps of each network."""
    vae_steps: int = 1000
    """Training steps of each VAE."""
    latent_dim: int = 16
    """Size of the VAE's code."""
    seed: int = 0
    """Seed of start values, data order and draws."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    out: Path = Path("runs/counterfactual_cells")
    """Folder for the results; an earlier run in it is moved aside."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Go on in the output folder and keep finished training."""

    def shrink(self) -> None:
        """Make it a run of seconds."""
        self.cases, self.draws, self.steps, self.vae_steps, self.latent_dim = 2, 2, 12, 12, 2


class Study:
    """The data and the trained programs of one data set."""

    def __init__(self, options: Options, name: Name) -> None:
        self.options, self.name = options, name
        self.folder = options.out / name
        self.folder.mkdir(exist_ok=True)
        splits = load(options, name)
        loc, scale = standardization(splits["train"]["image"])
        self.bounds = (float(-loc[0] / scale[0]), float((1 - loc[0]) / scale[0]))
        settings: dict[str, Any] = {"loc": loc, "scale": scale}
        self.train = Batches(
            splits["train"],
            batch_size=64,
            shuffle=True,
            seed=options.seed,
            augment=flips_and_turns if name == "malaria" else None,
            **settings,
        )
        whole = Batches(splits[options.part], batch_size=300, **settings)
        order = np.random.default_rng(options.seed).permutation(whole.num_cases)
        self.part = whole.subset(np.sort(order[:LOOKED_AT]))
        if options.smoke:
            self.train = self.train.first(640)

    def classifier(self, net: torch.nn.Module, seed: int, rate: float) -> tuple[Any, Any]:
        """Train a Bayesian network."""
        torch.manual_seed(seed)
        model = BayesianClassifier(net, CLASSES[self.name], prior=Normal(scale=1.0))
        guide = MeanFieldNormal(model, init_scale=0.03, estimator="shared")
        self.fit(model, guide, f"net-{seed}", self.options.steps, seed, learning_rate=rate)
        return model, guide

    def vae(self, seed: int) -> tuple[Any, Any]:
        """Train a conditional VAE."""
        torch.manual_seed(seed)
        size = SIZES[self.name]
        latent_dim = self.options.latent_dim
        model = ConditionalVAE(1, CLASSES[self.name], (size, size), latent_dim, width=16)
        guide = ConditionalNormal(model.posterior_net())
        self.fit(model, guide, f"vae-{seed}", self.options.vae_steps, seed, learning_rate=2e-3)
        return model, guide

    def fit(
        self, model: Any, guide: Any, name: str, steps: int, seed: int, **settings: Any
    ) -> None:
        """Train a pair, or load what is finished."""
        print(f"{self.name}: training {name}")
        fit(
            model,
            guide,
            self.train,
            epochs=max(1, round(steps / len(self.train))),
            schedule="cosine",
            device=self.options.device,
            seed=seed,
            checkpoint=self.folder / f"{name}.pt",
            resume=self.options.resume,
            **settings,
        )

    def tensors(self, places: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, list]:
        """Images, labels and ids of some cases."""
        batch = next(iter(self.part.subset(places, batch_size=len(places))))
        return batch["image"].to(device), batch["label"].to(device), batch["id"]


def load(options: Options, name: Name) -> dict[str, dict[str, Any]]:
    """Images, labels and ids of every split, at the size of the study."""
    if name == "pneumonia":
        return load_pneumoniamnist(options.data)
    splits = load_malaria(options.data, fraction=0.25, seed=options.seed)
    return {
        split: {"image": resized(part["image"], SIZES[name])}
        | {key: part[key] for key in ("label", "id")}
        for split, part in splits.items()
    }


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Smaller images, uint8, (case, channel, size, size)."""
    values = torch.from_numpy(images).float()
    small = interpolate(values, (size, size), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte().numpy()


def choose(study: Study, tree: xr.DataTree) -> tuple[np.ndarray, np.ndarray]:
    """Cases to explain, as many of each class, that the network gets right; and all others."""
    probs = tree["posterior/probs"].mean(("chain", "draw"))
    label = tree["observed_data/label"].values
    right = (probs.argmax("class").values == label) | study.options.smoke
    order = np.random.default_rng(study.options.seed).permutation(len(label))
    own = [order[right[order] & (label[order] == k)] for k in range(2)]
    count = min(study.options.cases, *map(len, own))
    chosen = np.stack([places[:count] for places in own], axis=1).ravel()
    return chosen, np.setdiff1d(order, chosen)


def explain(study: Study, net: tuple[Any, Any], vae: tuple[Any, Any], chosen: np.ndarray):
    """Counterfactuals of every kind.

    Returns:
        Results by kind.
    """
    options = study.options
    device = next(iter(net[1].parameters())).device
    image, _, ids = study.tensors(chosen, device)
    search = functions(*net, draws=options.draws, seed=options.seed)
    judges = functions(*net, draws=4 * options.draws, seed=options.seed + 1)
    with torch.no_grad():
        logits = torch.stack([function(image) for function in search])
    target = 1 - logits.softmax(2).mean(0).argmax(1)
    settings: dict[str, Any] = {"judges": judges, "case": ids}
    boxed = settings | {"bounds": study.bounds}
    fast = 3 if options.smoke else 30
    ways: dict[str, Callable[..., xr.Dataset]] = {
        "minimal perturbation": lambda: minimal_perturbation(
            search, image, target, steps=fast, **boxed
        ),
        "sparse additive map": lambda: sparse_additive(
            search, image, target, steps=max(3, fast // 2), **boxed
        ),
        "latent": lambda: latent_counterfactual(
            search, image, target, vae=vae, encode_as="target", steps=fast, particles=PARTICLES,
            **settings,
        ),
    }  # fmt: skip
    found = {}
    for kind, way in ways.items():
        print(f"{study.name}: {kind}")
        found[kind] = way()
    return found


def judged(
    result: xr.Dataset, other_net: tuple[Any, Any], other_vae: tuple[Any, Any], seed: int
) -> xr.Dataset:
    """Add what another network and another VAE say.

    ``realism`` is that of the other VAE; ``transferred`` is NaN where the other network does not
    see the present class in the image, so that there is nothing to flip.
    """
    device = next(iter(other_net[1].parameters())).device
    image, found = (
        torch.from_numpy(result[name].values).to(device) for name in ("image", "counterfactual")
    )
    target = torch.from_numpy(result["target"].values).to(device)
    draws = PosteriorPredictive(functions(*other_net, draws=16, seed=seed), target)
    with torch.no_grad():
        before, after = (draws.log_odds(each).cpu().numpy() for each in (image, found))
    bound, error = density(other_vae, found, target, seed)
    return result.assign(
        transferred=("case", np.where(before < 0, (after > 0).astype(float), np.nan)),
        realism=("case", bound),
        realism_se=("case", error),
    )


def density(vae: tuple[Any, Any], image: Tensor, label: Tensor, seed: int) -> list[np.ndarray]:
    """Bound on log p(image, label) and its Monte Carlo error, nats."""
    return [
        each.cpu().numpy()
        for each in log_density(*vae, image, label, particles=PARTICLES, seed=seed)
    ]


def real(study: Study, vae: tuple[Any, Any], places: np.ndarray) -> dict[int, np.ndarray]:
    """Realism of real images that were not explained, by class."""
    device = next(iter(vae[1].parameters())).device
    places = places[: 20 if study.options.smoke else 200]
    image, label, _ = study.tensors(places, device)
    bound = density(vae, image, label, study.options.seed)[0]
    return {k: bound[label.cpu().numpy() == k] for k in range(2)}


def figures(results: dict[str, xr.Dataset], realism: dict[int, np.ndarray]) -> xr.Dataset:
    """The table's figures, along ``kind``."""
    naive = results[NAIVE[0]]["realism"]
    lines = [figures_of(one, naive, realism) for one in results.values()]
    return xr.concat(lines, xr.DataArray(list(results), dims="kind", name="kind"))


def figures_of(
    result: xr.Dataset, naive: xr.DataArray, realism: dict[int, np.ndarray]
) -> xr.Dataset:
    """One line: means over cases with standard errors, of flips an interval over draws."""
    flips = result["flipped"].mean("case").values.ravel()
    low, high = np.quantile(flips, [0.05, 0.95])
    target, own = result["target"].values, result["realism"].values
    rank = [float((realism[k] < value).mean()) for k, value in zip(target, own, strict=True)]
    gain = result["realism"] - naive
    per_case = {
        "flipped": (result["flip_probability"] > 0.5).astype(float),
        "transferred": result["transferred"],
        "realism": result["realism"],
        "realism_gain": gain,
        "rank_among_real": xr.DataArray(rank, dims="case"),
        **{name: result[name] for name in ("l1", "l2", "sparsity", "high_frequency_share")},
    }
    variables: dict[str, Any] = {
        "flip_probability": flips.mean(),
        "flip_probability_lower": low,
        "flip_probability_upper": high,
    }
    for name, values in per_case.items():
        count = int(values.notnull().sum())
        variables[name] = float(values.mean())
        variables[f"{name}_se"] = float(values.std(ddof=1)) / max(count, 1) ** 0.5
        variables[f"{name}_num"] = count
    return xr.Dataset(variables)


HEAD = (
    "kind", "flipped, p > 0.5, %", "mean flip probability [90 % of draws]", "flips another net, %",
    "L1", "L2", "unchanged pixels, %", "high frequencies, %", "realism, nats",
    "realism less that of the smallest change", "real images that are less likely, %",
)  # fmt: skip


def rows(table: xr.Dataset) -> list[list[str]]:
    """Cells of the table."""

    def with_error(one: xr.Dataset, name: str, digits: int = 1) -> str:
        return f"{float(one[name]):.{digits}f} ± {float(one[f'{name}_se']):.{digits}f}"

    lines = []
    for kind in table["kind"].values:
        one = table.sel(kind=kind)
        low, high = (float(one[f"flip_probability_{end}"]) for end in ("lower", "upper"))
        lines.append([
            str(kind),
            f"{100 * float(one['flipped']):.0f}",
            f"{float(one['flip_probability']):.2f} [{low:.2f}, {high:.2f}]",
            f"{100 * float(one['transferred']):.0f} ± {100 * float(one['transferred_se']):.0f}",
            f"{float(one['l1']):.0f}",
            f"{float(one['l2']):.1f}",
            f"{100 * float(one['sparsity']):.0f}",
            f"{100 * float(one['high_frequency_share']):.0f}",
            with_error(one, "realism", 0),
            with_error(one, "realism_gain", 1),
            f"{100 * float(one['rank_among_real']):.0f}",
        ])  # fmt: skip
    return lines


def markdown(lines: list[list[str]]) -> str:
    """The table in Markdown."""
    both = [list(HEAD), ["---"] * len(HEAD), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in both)


def reconstructed(
    result: xr.Dataset, vae: tuple[Any, Any], other_vae: tuple[Any, Any], seed: int
) -> float:
    """Mean realism of what the VAE makes of the images as they are: nothing but smoother."""
    device = next(iter(vae[1].parameters())).device
    image, present = (torch.from_numpy(result[n].values).to(device) for n in ("image", "present"))
    with torch.no_grad():
        smooth = vae[0].decode(vae[1].encoder(image, present).mean, present)
    return float(density(other_vae, smooth, present, seed)[0].mean())


def verdict(study: Study, table: xr.Dataset, realism: dict[int, np.ndarray], smooth: float) -> str:
    """What the table says, in words."""
    own = np.concatenate(list(realism.values()))
    gain = table["realism_gain"].sel(kind=list(GENERATIVE))
    least = 100 * float(table["flipped"].min())
    sparse = float(table["realism"].sel(kind=NAIVE[1]))
    above = bool((gain > 0).all() and (table["realism"].sel(kind=list(GENERATIVE)) > sparse).all())
    word = "higher" if above else "not all higher"
    return (
        f"{int(table['flipped_num'][0])} {study.options.part} cases. Every kind flips at least "
        f"{least:.0f} % of them with posterior probability above 0.5. The realism of the "
        f"generative kinds is {word} than that of the naive ones; real images of the wanted class "
        f"have {own.mean():.0f} nats (standard deviation {own.std():.0f}), the explained ones "
        f"passed through the VAE as the class that they are {smooth:.0f}: so much of the gain is "
        "that a generated image has no noise."
    )


def section(study: Study, results: dict[str, xr.Dataset], table: xr.Dataset, text: str) -> Section:
    """A data set's part of the report."""
    first = next(iter(results.values()))
    shown = slice(0, min(2 * SHOWN, first.sizes["case"]))
    faces = side_by_side(
        {kind: one.isel(case=shown) for kind, one in results.items()},
        CLASSES[study.name],
        unit="sd of training pixels",
    )
    alt = "Images, counterfactuals of three kinds, and the changes with signed colour bars."
    return Section(
        study.name,
        f"Counterfactuals: {study.name}",
        paragraph(text) + picture(faces, alt, wide=True) + html_table(HEAD, rows(table)),
    )


def run(study: Study) -> tuple[xr.DataTree, xr.Dataset, Section, str]:
    """Train, predict, explain and judge on one data set."""
    options, seed = study.options, study.options.seed
    net = study.classifier(LeNet(1, 2, size=SIZES[study.name]), seed + 100, 1e-3)
    other_net = study.classifier(CompactCNN(), seed, 3e-3)
    vae, other_vae = study.vae(seed), study.vae(seed + 100)
    tree = predict(*net, study.part, draws=4 * options.draws, seed=seed, device=options.device)
    storage.save(tree, study.folder / "posterior.nc")
    chosen, others = choose(study, tree)
    results = {
        kind: judged(one, other_net, other_vae, seed)
        for kind, one in explain(study, net, vae, chosen).items()
    }
    for kind, one in results.items():
        storage.save(one, study.folder / f"{kind.replace(' ', '-')}.nc")
    realism = real(study, other_vae, others)
    table = figures(results, realism)
    smooth = reconstructed(results[NAIVE[0]], vae, other_vae, seed)
    text = verdict(study, table, realism, smooth)
    return tree, table, section(study, results, table, text), text


def main(options: Options) -> None:
    """Run every data set, print and save the tables, write the report."""
    open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    found = {name: run(Study(options, name)) for name in options.dataset}
    names = xr.DataArray(list(found), dims="dataset", name="dataset")
    tables = [table for _, table, _, _ in found.values()]
    storage.save(xr.concat(tables, names), options.out / "table.nc")
    parts = [f"{name}\n\n{markdown(rows(t))}\n\n{text}" for name, (_, t, _, text) in found.items()]
    (options.out / "table.md").write_text("\n\n".join(parts) + "\n")
    print("\n" + "\n\n".join(parts))
    tree = next(iter(found.values()))[0]
    report(
        options.out / "report.html",
        title="What would have to differ for another class?",
        tree=tree,
        scores=scoring.score(tree),
        sections=[part for _, _, part, _ in found.values()],
        notes=(
            "Minimal perturbations and sparse maps may put any value into any pixel: that they "
            "flip the class says how the network can be fooled. Whether another network agrees, "
            "and how likely the image is, tells an attack from an explanation.",
            "Realism is judged by a VAE that took no part in making the images. A generated "
            "image is a mean without the noise of pixels: it can be more likely than any real one.",
        ),
    )
    print(f"Wrote {options.out / 'table.md'} and {options.out / 'report.html'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
