"""``from_mcmc``: samples from elsewhere, Pyro's NUTS or a dict, in the tree of ``predict``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppl_med.checks import reject, whole
from ppl_med.inference.adapted import adapted
from ppl_med.inference.batches import first_batch, first_grader
from ppl_med.inference.guides.kept_draws import KeptChains
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.inference.predictive import predict
from ppl_med.programs.isolation import private_store
from ppl_med.programs.sites import Program, select_arguments, without_observations


def from_mcmc(
    model: Program,
    mcmc: Any,
    batches: Any,
    *,
    keys: Mapping[str, str] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    chains: int = 1,
    draws: int | None = None,
    **options: Any,
) -> xr.DataTree:
    """Predict with the draws that a sampler has left.

    ::

        mcmc = MCMC(NUTS(model), num_samples=500)
        mcmc.run(batch["image"], batch["label"])
        tree = from_mcmc(model, mcmc, test)

    The latents of all cases together (weights, levels, scales) are those of the samples. A latent
    of every case is drawn from its prior, since the cases here are others than those sampled; where
    they are the same, the tree's attributes say that no draw has seen the case.

    Args:
        model: The program that was sampled.
        mcmc: ``pyro.infer.MCMC`` after its run; or samples by site, tensors or arrays, dims (draw,
            ...), as ``Predictive`` gives them, chain after chain. Observed and deterministic sites
            among them are left out.
        batches: As in ``predict``.
        keys: As in ``predict``.
        coords: Names along axes of the program's sites, such as ``{"class": ["cyst", "tumour"]}``,
            beside and before those in ``model.coords``.
        chains: Chains that a dict of samples holds, equally long.
        draws: How many to take of each chain, evenly spaced; all by default.
        options: Further arguments of ``predict``, such as ``log_likelihood_of="training"``.

    Returns:
        DataTree as of ``predict``; of an ``MCMC`` with divergences, also the group
        ``sample_stats`` with ``diverging`` (chain, draw).

    Raises:
        TypeError: ``mcmc`` is neither.
        ValueError: Samples have other sites or shapes than the program, ``chains`` does not divide
            them, coordinates do not fit, or as ``predict``.
    """
    if coords and options.get("store") is not None:
        reject("coords", "left out with store=", coords, fix="set model.coords instead")
    samples, diverging = _samples(mcmc, whole("chains", chains))
    batches = adapted(batches, keys)
    example = select_arguments(model, first_grader(first_batch(batches)))
    example = {n: v[:1] if isinstance(v, Tensor) else v for n, v in example.items()}
    by_chain = _of_sites(model, example, samples)
    total = len(next(iter(by_chain[0].values())))
    count = total if draws is None else whole("draws", draws, most=total)
    kept = np.unique(np.linspace(0, total - 1, count).round().astype(int))
    stats = None
    if diverging is not None:
        stats = [{"diverging": torch.from_numpy(one[kept])} for one in diverging]
    thinned = [{name: v[kept] for name, v in one.items()} for one in by_chain]
    tree = predict(model, KeptChains(thinned, stats), batches, draws=len(kept), **options)
    return tree if not coords else _named(tree, coords)


def _samples(mcmc: Any, chains: int) -> tuple[dict[str, Tensor], np.ndarray | None]:
    """Samples with dims (chain, draw, ...), and which of them diverged."""
    if isinstance(mcmc, Mapping):
        found = {}
        for name, values in mcmc.items():
            array = torch.as_tensor(values).detach().cpu()
            if array.ndim == 0 or len(array) % chains:
                raise ValueError(
                    f"samples of {name!r} have shape {tuple(array.shape)}; expected (draw, ...) "
                    f"with a number of draws that chains={chains} divides"
                )
            found[name] = array.unflatten(0, (chains, -1))
        return found, None
    if not hasattr(mcmc, "get_samples") or not hasattr(mcmc, "diagnostics"):
        raise TypeError(
            f"mcmc must be pyro.infer.MCMC or a dict of samples by site, got {type(mcmc).__name__}"
        )
    found = {n: v.detach().cpu() for n, v in mcmc.get_samples(group_by_chain=True).items()}
    if not found:
        raise ValueError("mcmc holds no samples; call mcmc.run(...) first")
    shape = tuple(next(iter(found.values())).shape[:2])
    told = mcmc.diagnostics().get("divergences")
    if told is None:
        return found, None
    diverging = np.zeros(shape, bool)
    for chain, places in enumerate(told.values()):
        diverging[chain, list(places)] = True
    return found, diverging


def _of_sites(
    model: Program, example: dict[str, Any], samples: Mapping[str, Tensor]
) -> list[dict[str, Tensor]]:
    """Of each chain, the samples of the program's global latents, in the shapes of its sites."""
    with torch.no_grad(), private_store():
        sampler = PosteriorSampler(model, None, without_observations(model, example), 0, 0)
        shapes = {name: value.shape for name, value in sampler.draw(0).items()}
    absent = sorted(set(shapes) - set(samples))
    if absent:
        raise ValueError(
            f"mcmc has no samples of {absent}, latents of the model; its sites are "
            f"{sorted(samples)}: sample the same program that is predicted with"
        )
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values = samples[name]
        if values[0, 0].numel() != shape.numel():
            raise ValueError(
                f"samples of {name!r} have shape {tuple(values.shape[2:])} per draw, but the "
                f"model's site {tuple(shape)}; sample the same program that is predicted with"
            )
        found[name] = values.reshape(*values.shape[:2], *shape)
    chains = {len(values) for values in found.values()}
    return [{name: v[chain] for name, v in found.items()} for chain in range(min(chains))]


def _named(tree: xr.DataTree, coords: Mapping[str, Sequence[Any]]) -> xr.DataTree:
    """The tree with names along some of its axes."""
    known = {str(dim) for group in tree.subtree for dim in group.sizes}
    absent = sorted(set(coords) - known)
    if absent:
        raise ValueError(f"coords names {absent}; the axes of the tree are {sorted(known)}")
    for group in list(tree.children):
        dataset = tree[group].to_dataset()
        own = {dim: list(names) for dim, names in coords.items() if dim in dataset.sizes}
        for dim, names in own.items():
            if len(names) != dataset.sizes[dim]:
                raise ValueError(
                    f"coords has {len(names)} names for {dim!r}, which has {dataset.sizes[dim]} "
                    "entries; give one to each"
                )
        tree[group] = xr.DataTree(dataset.assign_coords(own))
    return tree
