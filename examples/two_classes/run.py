"""The study from end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

from ppl_med import storage
from ppl_med.inference import NUTS, MeanFieldNormal, fit, predict, sample
from ppl_med.models import BayesianClassifier
from ppl_med.plots.theme import new_figure
from ppl_med.storage import markdown_table, open_run
from ppl_med.weights import Normal
from two_classes.options import Options

SHARE = 0.02  # of class R
LOC = torch.tensor([[6.0, 0.0], [2.0, 5.0]])  # of B and R; rows are classes
VARIANCE = torch.tensor([[1.0, 1.0], [0.5, 0.5]])
POINT = (4.0, 3.0)
LEAST = 3  # points of class R
PRIOR_SHAPE, PRIOR_RATE, PRIOR_WIDTH = 2.0, 1.0, 10.0
EDGES = (-1.0, 10.0, -4.0, 8.0)  # of the plane: x from, to, y from, to


def generative(point: Tensor, color: Tensor | None = None, *, num_cases: int | None = None) -> None:
    """p(point, color, share, loc, variance); class 1 is R.

    share ~ Beta(1, 1), variance ~ InverseGamma(2, 1), loc ~ Normal(0, 10 sd of the class).
    """
    one = point.new_ones(())
    share = pyro.sample("share", dist.Beta(one, one))
    shape = one.expand(2, 2)
    variance = pyro.sample(
        "variance", dist.InverseGamma(PRIOR_SHAPE * shape, PRIOR_RATE * shape).to_event(2)
    )
    loc = pyro.sample("loc", dist.Normal(0 * shape, PRIOR_WIDTH * variance.sqrt()).to_event(2))
    with pyro.plate("case", num_cases or len(point), subsample=point):
        color = pyro.sample("color", dist.Bernoulli(share.expand(len(point))), obs=color)
        chosen = color.long()
        normal = dist.Normal(loc[chosen], variance[chosen].sqrt())
        pyro.sample("point", normal.to_event(1), obs=point)


def simulate(number: int, seed: int) -> dict[str, Tensor]:
    """Points and their classes, from the true values."""
    rng = np.random.default_rng(seed)
    color = rng.random(number) < SHARE
    if color.sum() < LEAST:  # a mean and a variance need some
        color[:LEAST] = True
    noise = rng.standard_normal((number, 2))
    chosen = torch.from_numpy(color).long()
    point = LOC[chosen] + VARIANCE[chosen].sqrt() * torch.from_numpy(noise).float()
    return {"point": point.double(), "color": torch.from_numpy(color).double()}


def probability(point: Any, share: Any, loc: Any, variance: Any) -> np.ndarray:
    """p(R | point) by Bayes' rule.

    Args:
        point: Dims (..., 2).
        share: p(R), dims (draw,) or a number.
        loc: Dims (draw, class, 2) or (class, 2).
        variance: As ``loc``.

    Returns:
        Dims (..., draw), or (...) of numbers.
    """
    share, loc, variance = (np.asarray(one, dtype=np.float64) for one in (share, loc, variance))
    apart = np.asarray(point, dtype=np.float64)
    apart = apart[(..., *[None] * (loc.ndim - 1), slice(None))] - loc
    density = -0.5 * (apart**2 / variance + np.log(variance)).sum(-1)
    log_odds = density[..., 1] - density[..., 0] + np.log(share) - np.log1p(-share)
    return 1 / (1 + np.exp(-log_odds))


def estimates(batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Maximum likelihood: share, and mean and variance of each class (class, 2)."""
    parts = [batch["point"][batch["color"] == color].numpy() for color in (0, 1)]
    moments = {"loc": [part.mean(0) for part in parts], "variance": [part.var(0) for part in parts]}
    return {"share": batch["color"].numpy().mean(), **{n: np.stack(v) for n, v in moments.items()}}


def exact_draws(batch: dict[str, Tensor], draws: int, seed: int) -> dict[str, np.ndarray]:
    """Draws of the conjugate posterior: share (draw,), loc and variance (draw, class, 2)."""
    rng = np.random.default_rng(seed)
    red = int(batch["color"].sum())
    locs, variances = [], []
    for color in (0, 1):
        values = batch["point"][batch["color"] == color].numpy()
        number, weight = len(values), len(values) + PRIOR_WIDTH**-2
        mean = values.sum(0) / weight
        rate = PRIOR_RATE + 0.5 * ((values**2).sum(0) - weight * mean**2)
        shape = PRIOR_SHAPE + number / 2
        variance = stats.invgamma.rvs(shape, scale=rate, size=(draws, 2), random_state=rng)
        variances.append(variance)
        locs.append(mean + np.sqrt(variance / weight) * rng.standard_normal((draws, 2)))
    share = rng.beta(1 + red, 1 + len(batch["color"]) - red, draws)
    return {"share": share, "loc": np.stack(locs, 1), "variance": np.stack(variances, 1)}


def stacked(tree: xr.DataTree) -> dict[str, np.ndarray]:
    """Draws of the generative latents of all chains together."""
    posterior = tree["posterior"].to_dataset()
    joined = {name: posterior[name].values for name in ("share", "loc", "variance")}
    return {name: values.reshape(-1, *values.shape[2:]) for name, values in joined.items()}


def by_svi(batch: dict[str, Tensor], options: Options, folder: Path) -> xr.DataTree:
    """The generative posterior by independent normals in unconstrained space."""
    torch.manual_seed(options.seed)
    guide = MeanFieldNormal(generative, init_scale=0.05, example=batch)
    fit(generative, guide, [batch], epochs=30 if options.smoke else 2000, learning_rate=0.1,
        schedule="cosine", seed=options.seed, device=options.device,
        checkpoint=folder / "svi.pt", resume=options.resume)  # fmt: skip
    return predict(generative, guide, [first(batch)], draws=options.draws, seed=options.seed)


def by_nuts(batch: dict[str, Tensor], options: Options, folder: Path) -> xr.DataTree:
    """The generative posterior by the No-U-Turn sampler."""
    warm_up = 20 if options.smoke else 200
    chains = sample(generative, [batch], NUTS(), draws=options.draws // 2, warm_up=warm_up,
                    chains=2, seed=options.seed, device=options.device,
                    checkpoint=folder / "nuts.pt", resume=options.resume)  # fmt: skip
    return predict(generative, chains, [first(batch)], draws=options.draws // 2, seed=options.seed)


def first(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """One case: what is predicted here are latents of all cases, which need no more."""
    return {name: value[:1] for name, value in batch.items()}


def by_classifier(
    batch: dict[str, Tensor], points: np.ndarray, options: Options, folder: Path
) -> np.ndarray:
    """p(R | points) of a network, dims (point, draw)."""
    torch.manual_seed(options.seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    model = BayesianClassifier(net, ["B", "R"], Normal(1.0))
    centre, scale = batch["point"].mean(0), batch["point"].std(0)

    def images(points: Tensor) -> Tensor:
        """Points as images of one pixel in two channels, which is what classifiers take."""
        return ((points - centre) / scale).float()[:, :, None, None]

    data = {"image": images(batch["point"]), "label": batch["color"].long()}
    guide = MeanFieldNormal(model, init_scale=0.1, estimator="auto")
    fit(model, guide, [data], epochs=30 if options.smoke else 2000, learning_rate=0.03,
        schedule="cosine", seed=options.seed, device=options.device,
        checkpoint=folder / "classifier.pt", resume=options.resume)  # fmt: skip
    asked = {"image": images(torch.from_numpy(points))}
    tree = predict(model, guide, [asked], draws=min(options.draws, 200), seed=options.seed)
    return tree["posterior/probs"].sel({"class": "R"}).values[0].T


def row(name: str, values: np.ndarray) -> list[str]:
    """A line of the table: mean and central 90 % interval of p(R | x) over draws."""
    low, high = np.quantile(values, [0.05, 0.95])
    return [name, f"{values.mean():.4f}", f"{low:.4f} to {high:.4f}"]


def maps(panels: dict[str, np.ndarray], batch: dict[str, Tensor]) -> Figure:
    """Panels of the plane by title, (y, x), with the points; the title says what the colour is."""
    figure = new_figure(7.6, 4.3)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    red = batch["color"].numpy() == 1
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        is_sd = "sd" in title
        shown = ax.imshow(
            values, extent=EDGES, origin="lower", aspect="auto", vmin=0,
            vmax=None if is_sd else 1, cmap="viridis" if is_sd else "magma",
        )  # fmt: skip
        bar = figure.colorbar(shown, ax=ax, location="bottom", pad=0.02, shrink=0.9)
        bar.ax.tick_params(labelsize=12)
        bar.set_label("sd of p(R | x)" if is_sd else "p(R | x)", fontsize=13)
        for chosen, color, mark, name in (
            (~red, "#56B4E9", "o", "B"),
            (red, "#D55E00", "^", "R"),
        ):
            x, y = batch["point"][torch.from_numpy(chosen)].numpy().T
            ax.scatter(x, y, 4 if name == "B" else 18, color, marker=mark, label=name, linewidths=0)
        ax.plot(*POINT, "*", color="white", markersize=12, markeredgecolor="black", label="(4, 3)")
        ax.set_title(title.replace(": ", "\n"), fontsize=14)
        ax.set_xticks([0, 5, 10])
        ax.set_xlabel("x₁", fontsize=13)
        ax.tick_params(labelsize=12)
    axes[0].set_ylabel("x₂", fontsize=13)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, fontsize=13, markerscale=1.6
    )
    return figure


def main(options: Options) -> None:
    """Estimate, infer twice, train a classifier; a table, a picture and the two posteriors."""
    folder = open_run(options.out, resume=options.resume)
    options.draws = 40 if options.smoke else options.draws
    batch = simulate(200 if options.smoke else options.points, options.seed)
    trees = {"svi": by_svi(batch, options, folder)}
    trees["nuts"] = by_nuts(batch, options, folder)
    for name, tree in trees.items():
        storage.save(tree, folder / f"posterior-{name}.nc")
    x, y = (np.linspace(*EDGES[i : i + 2], 12 if options.smoke else 90) for i in (0, 2))
    plane = np.stack(np.meshgrid(x, y), -1)
    asked = np.concatenate([[POINT], plane.reshape(-1, 2)])
    draws = {name: stacked(tree) for name, tree in trees.items()}
    draws["exact"] = exact_draws(batch, 20_000, options.seed)
    of_net = by_classifier(batch, asked, options, folder)
    found = {name: probability(POINT, **own) for name, own in draws.items()}
    truth = probability(POINT, SHARE, LOC, VARIANCE)
    estimate = probability(POINT, **estimates(batch))
    table = markdown_table(
        ["p(R given (4, 3))", "value, or mean", "central 90 %"],
        [
            ["true values", f"{truth:.4f}", ""],
            ["maximum likelihood", f"{estimate:.4f}", "none"],
            row("generative, exact posterior", found["exact"]),
            row("generative, NUTS", found["nuts"]),
            row("generative, SVI", found["svi"]),
            row("discriminative, SVI", of_net[0]),
        ],
    )
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    generated = probability(plane, **draws["svi"])
    panels = {
        "generative: mean": generated.mean(-1),
        "generative: sd": generated.std(-1),
        "discriminative: mean": of_net[1:].mean(-1).reshape(plane.shape[:2]),
    }
    maps(panels, batch).savefig(folder / "maps.png", dpi=110)
    print(table)
    print(f"{int(batch['color'].sum())} of {len(batch['color'])} points are R; maps in {folder}")
