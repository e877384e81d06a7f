"""Stability of maps: under noise on the image, and under new weights of the net.

References: Yeh et al., "On the (in)fidelity and sensitivity of explanations", NeurIPS 2019
(max-sensitivity); Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018 (randomisation).
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from ppl_med.axes import SAMPLES
from ppl_med.checks import positive, whole
from ppl_med.explain.function_checks import check_image, per_case
from ppl_med.explain.quality.localization import as_maps

_FRONT = (*SAMPLES, "case")


def max_sensitivity(
    explain: Callable[[Tensor], xr.Dataset],
    image: Tensor,
    *,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
) -> xr.Dataset:
    """Largest relative change of the maps under uniform noise on the image.

        max over noise of ‖a(x + u) - a(x)‖ / ‖a(x)‖,    u uniform within ±radius · range of x

    Args:
        explain: Function from an image to what ``attribute`` returns, all else fixed. With
            ``keep_draws=True`` every draw has its own sensitivity, else the mean map has one.
        image: As in ``attribute``.
        radius: Largest change of a pixel, as a share of the case's intensity range.
        samples: Number of noisy copies. The maximum over few is below the maximum over all.
        seed: Seed of the noise.

    Returns:
        ``max_sensitivity`` and ``mean_sensitivity`` (case), with (chain, draw) in front for kept
        draws; NaN where the map is 0. ``sensitivity`` has the dim ``sample`` beside them.

    Raises:
        ValueError: If an argument does not fit.
    """
    check_image(image)
    whole("samples", samples)
    positive("radius", radius)
    maps = as_maps(explain(image))
    inner = [dim for dim in maps.dims if dim not in _FRONT]
    flat = image.flatten(1)
    reach = per_case(radius * (flat.max(1).values - flat.min(1).values), image)
    generator = torch.Generator().manual_seed(seed)
    changes = []
    size: xr.DataArray = (maps.astype(float) ** 2).sum(inner) ** 0.5
    for _ in range(samples):
        noise = 2 * torch.rand(image.shape, generator=generator, dtype=torch.float64) - 1
        moved = as_maps(explain(image + reach * noise.to(image)))
        change: xr.DataArray = ((moved - maps).astype(float) ** 2).sum(inner) ** 0.5
        changes.append(change / size.where(size > 0))
    sensitivity = xr.concat(changes, "sample")
    result = xr.Dataset(
        {
            "sensitivity": sensitivity,
            "max_sensitivity": sensitivity.max("sample"),
            "mean_sensitivity": sensitivity.mean("sample"),
        },
        attrs={"radius": radius, "samples": samples},
    )
    for variable in result.data_vars.values():
        variable.attrs["units"] = "1"
    return result


def map_similarity(one: xr.DataArray | xr.Dataset, other: xr.DataArray | xr.Dataset) -> xr.Dataset:
    """Similarity of two sets of maps: rank correlation over pixels, with and without sign.

    Args:
        one: Maps (case, channel, ...), or a Dataset of ``attribute``.
        other: Maps of the same cases.

    Returns:
        ``correlation`` and ``correlation_absolute`` (case), Spearman's, with (chain, draw) where
        the maps have them; NaN where a map is constant.

    Raises:
        ValueError: If the maps differ in shape.
    """
    pair = [as_maps(maps) for maps in (one, other)]
    if pair[0].sizes != pair[1].sizes:
        raise ValueError(f"the maps differ in shape: {pair[0].sizes} and {pair[1].sizes}")
    front = [dim for dim in pair[0].dims if dim in _FRONT]
    inner = [dim for dim in pair[0].dims if dim not in front]
    values = [maps.transpose(*front, *inner).values.astype(float) for maps in pair]
    flat = [v.reshape(*v.shape[: len(front)], -1) for v in values]
    result = xr.Dataset(
        {
            "correlation": (front, _spearman(*flat)),
            "correlation_absolute": (front, _spearman(*(np.abs(f) for f in flat))),
        }
    )
    for variable in result.data_vars.values():
        variable.attrs.update(units="1", long_name="Spearman's rank correlation over pixels")
    return result


def _spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks = [rankdata(values, axis=-1) for values in (one, other)]
    centred = [r - r.mean(-1, keepdims=True) for r in ranks]
    below = np.sqrt((centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1))
    with np.errstate(invalid="ignore"):
        return (centred[0] * centred[1]).sum(-1) / np.where(below > 0, below, np.nan)


def parameter_randomisation(
    net: torch.nn.Module, explain: Callable[[torch.nn.Module], xr.Dataset], *, seed: int = 0
) -> xr.Dataset:
    """Re-initialise a net's layers from the last to the first, and compare the maps each time.

    A map that explains what the net has learnt changes; one that stays the same shows the image.

    Args:
        net: The net; it is copied, not changed.
        explain: Function from a net to what ``attribute`` returns, all else fixed. For a posterior,
            pass one draw's net, or call ``map_similarity`` on maps of trained and untrained guides.
        seed: Seed of the new start values.

    Returns:
        ``correlation`` and ``correlation_absolute`` (layer, case) to the maps of the trained net,
        where ``layer`` is re-initialised along with all after it.

    Raises:
        ValueError: If no layer of the net can be re-initialised.
    """
    changed = copy.deepcopy(net)
    layers = [
        (name, module)
        for name, module in changed.named_modules()
        if hasattr(module, "reset_parameters") and any(True for _ in module.parameters(False))
    ]
    if not layers:
        raise ValueError("net has no layer with reset_parameters; re-initialise it by hand")
    trained, results = explain(net), []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _, module in reversed(layers):
            module.reset_parameters()
            state = torch.random.get_rng_state()
            results.append(map_similarity(trained, explain(changed)))
            torch.random.set_rng_state(state)
    names = [name for name, _ in reversed(layers)]
    return xr.concat(results, xr.DataArray(names, dims="layer", name="layer"))
