"""What another network and another VAE say of a counterfactual, and the figures of that."""

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from counterfactuals.study import Study
from ppl_med.explain import second_opinion
from ppl_med.explain.counterfactuals.realism import log_density
from ppl_med.inference import functions

NAIVE = ("minimal perturbation", "sparse additive map")
GENERATIVE = ("latent",)
PARTICLES = 64


def judged(
    result: xr.Dataset, other_net: tuple[Any, Any], other_vae: tuple[Any, Any], seed: int
) -> xr.Dataset:
    """Add what another network and another VAE say.

    ``realism`` is that of the other VAE; ``transferred`` is NaN where the other network does not
    see the present class in the image, so that there is nothing to flip.
    """
    device = next(iter(other_net[1].parameters())).device
    found, target = (
        torch.from_numpy(result[name].values).to(device) for name in ("counterfactual", "target")
    )
    bound, error = density(other_vae, found, target, seed)
    result = second_opinion(result, functions(*other_net, draws=16, seed=seed), device=device)
    return result.assign(realism=("case", bound), realism_se=("case", error))


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


def reconstructed(
    result: xr.Dataset, vae: tuple[Any, Any], other_vae: tuple[Any, Any], seed: int
) -> float:
    """Mean realism of what the VAE makes of the images as they are: nothing but smoother."""
    device = next(iter(vae[1].parameters())).device
    image, present = (torch.from_numpy(result[n].values).to(device) for n in ("image", "present"))
    with torch.no_grad():
        smooth = vae[0].decode(vae[1].encoder(image, present).mean, present)
    return float(density(other_vae, smooth, present, seed)[0].mean())


def figures(results: dict[str, xr.Dataset], realism: dict[int, np.ndarray]) -> xr.Dataset:
    """The table's figures, along ``kind``."""
    naive = results[NAIVE[0]]["realism"]
    lines = [figures_of(one, naive, realism) for one in results.values()]
    return xr.concat(lines, xr.DataArray(list(results), dims="kind", name="kind"))


def figures_of(
    result: xr.Dataset, naive: xr.DataArray, realism: dict[int, np.ndarray]
) -> xr.Dataset:
    """One row: means over cases with standard errors, of flips an interval over draws."""
    flips = result["flipped"].where(~result["already"]).mean("case").values.ravel()
    flips = flips[np.isfinite(flips)]  # of the draws in which a case could flip
    low, high = np.quantile(flips, [0.05, 0.95], method="weibull")
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
