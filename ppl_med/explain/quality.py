"""How good an attribution is: does the net follow it, does it find the evidence, is it stable.

    perturbation curves    replace the pixels the map ranks highest, and read the output again
    pointing game          does the highest pixel lie inside the mask of the evidence
    rank share             how much of the mask the highest pixels fill; mass: ``localization``
    max-sensitivity        largest relative change of the map under small noise on the image
    randomisation          likeness of the maps of the trained and of a re-initialised net

References: Samek et al., "Evaluating the visualization of what a deep neural network has learned",
IEEE TNNLS 28 (2017) (pixel flipping); Petsiuk, Das and Saenko, "RISE", BMVC 2018 (insertion and
deletion); Rong et al., "A consistent and efficient evaluation strategy for attribution methods",
ICML 2022 (ROAD's noisy linear imputation); Zhang et al., "Top-down neural attention by excitation
backprop", IJCV 126 (2018) (pointing game); Arras, Osman and Samek, Information Fusion 81 (2022)
(rank share); Yeh et al., "On the (in)fidelity and sensitivity of explanations", NeurIPS 2019;
Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve
from scipy.stats import rankdata
from torch import Tensor

from ppl_med.explain.attribution.draws import Draw, Function, in_batches
from ppl_med.explain.attribution.score import SPACE, Output, Score, as_region
from ppl_med.explain.function_checks import (
    as_baseline,
    as_target,
    check_choice,
    check_count,
    check_functions,
    check_image,
)
from ppl_med.explain.localization import as_maps, check_mask

Imputation = Literal["baseline", "road"]
Order = Literal["highest_first", "lowest_first"]


def perturbation_curve(
    functions: Sequence[Function],
    image: Tensor,
    target: int | Tensor,
    attribution: xr.DataArray | xr.Dataset,
    *,
    output: Output = "probability",
    region: Tensor | None = None,
    imputation: Imputation = "baseline",
    order: Order = "highest_first",
    baseline: float | Tensor = 0.0,
    insert: bool = False,
    steps: int = 20,
    batch_size: int = 256,
    seed: int = 0,
) -> xr.Dataset:
    """Replace pixels in the order of a map, and follow the output of every draw.

    A map that ranks what the net uses makes the output fall fast (``highest_first``), and stay when
    the least relevant pixels go first; with ``insert`` pixels of the image come into the baseline,
    and the output rises fast. A random order, drawn from the seed, stands beside it.

    Args:
        functions: As in ``attribute``.
        image: As in ``attribute``.
        target: As in ``attribute``.
        attribution: Maps (case, channel, ...), or a Dataset of ``attribute``, whose ``mean`` is
            ranked. Channels are summed: a pixel goes with all of them.
        output: What is read, as in ``attribute``.
        region: As in ``attribute``.
        imputation: ``"baseline"`` puts the baseline in (pixel flipping, insertion and deletion);
            ``"road"`` a noisy linear mix of the pixels around, which hides the removed shape;
            ROAD knows two-dimensional images, and no ``insert``.
        order: Which pixels go first.
        baseline: What replaces pixels.
        insert: Start from the baseline and put pixels of the image in.
        steps: Parts that the pixels are replaced in.
        batch_size: Most images in one forward pass.
        seed: Of the random order and of ROAD's noise.

    Returns:
        With dims (chain, draw, case, share): ``score`` and ``score_random``, at the ``share`` of
        pixels replaced, 0 to 1. With dims (chain, draw, case): ``area``, the mean height of the
        curve by the trapezoidal rule, ``area_random``, and ``gain``, how much better than the
        random order it is (positive is good): random - map where the output should fall early or
        rise late (highest first replaced, lowest first inserted), else map - random. ``mean_gain``
        (chain, draw) with ``mean_gain_se`` over cases.

    Raises:
        ValueError: If an argument does not fit.
    """
    for name, value, choices in (
        ("output", output, Output),
        ("imputation", imputation, Imputation),
        ("order", order, Order),
    ):
        check_choice(name, value, choices)
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    check_image(image)
    if imputation == "road" and (image.ndim != 4 or insert):
        raise ValueError("road replaces pixels of images (case, channel, row, col); use 'baseline'")
    image, start = image.detach(), as_baseline(baseline, image)
    score = Score(output, as_target(target, image), as_region(region, image))
    index = check_functions(functions, image, start, lambda n, f, o: score.check(n, o))
    maps = _by_pixel(attribution, image, order)
    rng = np.random.default_rng(seed)
    places = [_places(maps, rng), _places(rng.random(maps.shape), rng)]

    num = maps.shape[1]
    edges = np.linspace(0, num, steps + 1).round().astype(int)
    pictures = [_pictures(image, start, place, edges, imputation, insert, rng) for place in places]
    rows = torch.arange(len(image), device=image.device)
    values = np.empty((2, len(functions), len(image), steps + 1))
    for position, function in enumerate(functions):
        draw = Draw(function, score)
        for kind, make in enumerate(pictures):
            for step in range(steps + 1):
                found = in_batches(draw.value, make(step), rows, batch_size)
                values[kind, position, :, step] = found[0].double().cpu().numpy()
    return _curves(values[:, index.values], edges / num, index, insert != (order == "lowest_first"))


def _by_pixel(
    attribution: xr.DataArray | xr.Dataset, image: Tensor, order: Order
) -> NDArray[np.float64]:
    """What to rank, (case, pixel), the first to go the largest."""
    if isinstance(attribution, xr.Dataset) and "mean" in attribution:
        attribution = attribution["mean"]
    maps = as_maps(attribution)
    dims = ("case", *SPACE[image.ndim])
    if set(maps.dims) != {"channel", *dims}:
        raise ValueError(f"attribution has dims {maps.dims}; the images need channel and {dims}")
    values = maps.sum("channel").transpose(*dims).values.astype(float)
    wanted = (len(image), *image.shape[2:])
    if values.shape != wanted:
        raise ValueError(f"attribution covers {values.shape}, the images {wanted}")
    flat = values.reshape(len(values), -1)
    return flat if order == "highest_first" else -flat


def _places(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """When each pixel goes, (case, pixel), the largest first; ties in random order."""
    order = np.lexsort((rng.random(values.shape), -values), axis=1)
    return np.argsort(order, axis=1)


def _pictures(
    image: Tensor,
    start: Tensor,
    places: NDArray[np.int64],
    edges: NDArray[np.int64],
    imputation: Imputation,
    insert: bool,
    rng: np.random.Generator,
) -> Callable[[int], Tensor]:
    """The images after a number of steps; ROAD's are made once, as they cost a linear system."""
    when = torch.from_numpy(places.reshape(len(image), 1, *image.shape[2:])).to(image.device)
    if imputation == "baseline":
        first, last = (start, image) if insert else (image, start)
        return lambda step: torch.where(when < int(edges[step]), last, first)
    made = []
    for edge in edges:
        gone = (when < int(edge)).cpu().numpy()[:, 0]
        filled = [
            linear_imputation(x, mask, rng)
            for x, mask in zip(image.double().cpu().numpy(), gone, strict=True)
        ]
        made.append(torch.from_numpy(np.stack(filled)).to(image))
    return lambda step: made[step]


def linear_imputation(
    image: NDArray[np.float64],
    gone: NDArray[np.bool_],
    rng: np.random.Generator,
    noise: float = 0.01,
) -> NDArray[np.float64]:
    """ROAD: each lost pixel is a weighted mean of its eight neighbours, lost ones included.

    Direct neighbours weigh 1/6, diagonal ones 1/12, rescaled at the border. With every pixel lost
    the image is its own mean.

    Args:
        image: (channel, row, col).
        gone: Lost pixels, (row, col).
        rng: Of the noise.
        noise: Its standard deviation, as a share of that of the image.
    """
    result = image.copy()
    lost = np.argwhere(gone)
    if len(lost) == gone.size:
        result[:] = image.mean((1, 2), keepdims=True)
    elif len(lost):
        number = np.full(gone.shape, -1)
        number[gone] = np.arange(len(lost))
        entries: list[tuple[int, int, float]] = [(i, i, 1.0) for i in range(len(lost))]
        right = np.zeros((len(lost), len(image)))
        steps = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if r or c]
        for i, (row, col) in enumerate(lost):
            near = [
                (row + r, col + c, 1 / 12 if r and c else 1 / 6)
                for r, c in steps
                if 0 <= row + r < gone.shape[0] and 0 <= col + c < gone.shape[1]
            ]
            total = sum(weight for _, _, weight in near)
            for r, c, weight in near:
                if gone[r, c]:
                    entries.append((i, int(number[r, c]), -weight / total))
                else:
                    right[i] += weight / total * image[:, r, c]
        rows, cols, values = zip(*entries, strict=True)
        matrix = coo_array((values, (rows, cols)), shape=(len(lost), len(lost))).tocsc()
        result[:, gone] = np.reshape(spsolve(matrix, right), (len(lost), -1)).T
    result[:, gone] += noise * image.std() * rng.standard_normal((len(image), len(lost)))
    return result


def _curves(
    values: NDArray[np.float64], share: NDArray[np.float64], index: xr.DataArray, keeps: bool
) -> xr.Dataset:
    """Arrange curves (kind, chain, draw, case, share) and compare their areas."""
    dims = ("chain", "draw", "case", "share")
    result = xr.Dataset(
        {"score": (dims, values[0]), "score_random": (dims, values[1])},
        coords={"chain": index["chain"], "draw": index["draw"], "share": share},
    )
    result["area"] = result["score"].integrate("share")
    result["area_random"] = result["score_random"].integrate("share")
    sign = 1 if keeps else -1
    result["gain"] = sign * (result["area"] - result["area_random"])
    result["mean_gain"] = result["gain"].mean("case")
    count = result.sizes["case"]
    spread = result["gain"].std("case", ddof=1) if count > 1 else result["mean_gain"] * np.nan
    result["mean_gain_se"] = spread / np.sqrt(count)
    result["share"].attrs.update(units="1", long_name="share of pixels replaced")
    for name in result.data_vars:
        result[name].attrs.update(units="output unit", long_name=str(name).replace("_", " "))
    return result


def pointing_game(
    attribution: xr.DataArray | xr.Dataset, mask: xr.DataArray, tolerance: int = 0
) -> xr.Dataset:
    """Does the highest pixel lie in the mask, and how much of the mask do the highest pixels fill.

    Args:
        attribution: As in ``localization.mass_inside``; channels are summed.
        mask: As in ``localization.mass_inside``.
        tolerance: Pixels, along each axis, by which the highest pixel may miss the mask.

    Returns:
        ``hit`` (case), 1 where the highest pixel lies in the mask (with ties the share of them),
        ``rank_share`` (case), the share of the mask's k pixels among the k highest, both with
        (chain, draw) in front where the maps have them; ``chance`` (case), the mask's share of the
        image, which ``rank_share`` of a random map is on average, and ``hit_chance`` (case), the
        same of the mask widened by the tolerance, which ``hit`` is; each with ``mean_<name>`` over
        cases with a mask and ``mean_<name>_se``.

    Raises:
        ValueError: If axes, cases or values do not fit, or all masks are empty.
    """
    maps = as_maps(attribution)
    space = tuple(dim for dim in ("depth", "row", "col") if dim in maps.dims)
    check_mask(mask, maps, space)
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}; it must be 0 pixels or more")
    inside = mask.transpose("case", *space).astype(bool)
    near = _widened(inside.values, tolerance)
    values = maps.sum("channel").transpose(..., "case", *space)
    front = [dim for dim in values.dims if dim not in ("case", *space)]
    shape = tuple(values.sizes[dim] for dim in (*front, "case"))
    flat = values.values.reshape(*shape, -1)
    top = flat == flat.max(-1, keepdims=True)
    hit = (top & near.reshape(len(near), -1)).sum(-1) / top.sum(-1)
    truth = inside.values.reshape(len(near), -1)
    size = truth.sum(-1)
    # Ties share the places they compete for, so that a flat map has the mask's share of the image.
    least, most = (rankdata(-flat, method, axis=-1) for method in ("min", "max"))
    chance = np.clip((size[:, None] - least + 1) / (most - least + 1), 0, 1)
    with np.errstate(invalid="ignore"):
        rank_share = (chance * truth).sum(-1) / size
    result = xr.Dataset(
        {
            "hit": ((*front, "case"), np.where(size > 0, hit, np.nan)),
            "rank_share": ((*front, "case"), rank_share),
            "chance": ("case", np.where(size > 0, truth.mean(-1), np.nan)),
            "hit_chance": (
                "case",
                np.where(size > 0, near.reshape(len(near), -1).mean(-1), np.nan),
            ),
        },
        coords={name: maps[name] for name in (*front, "case") if name in maps.coords},
    )
    for name in ("hit", "rank_share", "chance", "hit_chance"):
        count = result[name].notnull().sum("case")
        result[f"mean_{name}"] = result[name].mean("case")
        result[f"mean_{name}_se"] = result[name].std("case", ddof=1) / np.sqrt(count)
    for variable in result.data_vars.values():
        variable.attrs["units"] = "1"
    return result


def _widened(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    if width == 0:
        return mask
    return np.stack([binary_dilation(m, np.ones((2 * width + 1,) * m.ndim)) for m in mask])


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
        explain: Image to what ``attribute`` returns, all else fixed. With ``keep_draws=True`` every
            draw has its own sensitivity, else the mean map has one.
        image: As in ``attribute``.
        radius: Largest change of a pixel, as a share of the case's intensity range.
        samples: Noisy copies. The maximum over few is below the maximum over all.
        seed: Of the noise.

    Returns:
        ``max_sensitivity`` and ``mean_sensitivity`` (case), with (chain, draw) in front for kept
        draws; NaN where the map is 0. ``sensitivity`` has the dim ``sample`` beside them.

    Raises:
        ValueError: If an argument does not fit.
    """
    check_image(image)
    check_count("samples", samples)
    if not radius > 0:
        raise ValueError(f"radius is {radius}; it must be above 0")
    maps = as_maps(explain(image))
    inner = [dim for dim in maps.dims if dim not in ("chain", "draw", "case")]
    flat = image.flatten(1)
    reach = radius * (flat.max(1).values - flat.min(1).values)
    reach = reach.view(-1, *[1] * (image.ndim - 1))
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


def likeness(one: xr.DataArray | xr.Dataset, other: xr.DataArray | xr.Dataset) -> xr.Dataset:
    """How alike two sets of maps are: rank correlation over pixels, with and without sign.

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
    front = [dim for dim in pair[0].dims if dim in ("chain", "draw", "case")]
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
    net: torch.nn.Module,
    explain: Callable[[torch.nn.Module], xr.Dataset],
    *,
    seed: int = 0,
) -> xr.Dataset:
    """Re-initialise a net's layers from the last to the first, and compare the maps each time.

    A map that explains what the net has learnt changes; one that stays shows the image.

    Args:
        net: The net; it is copied, not changed.
        explain: A net to what ``attribute`` returns, all else fixed. For a posterior, pass one
            draw's net, or call ``likeness`` on maps of trained and untrained guides.
        seed: Of the new start values.

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
            results.append(likeness(trained, explain(changed)))
            torch.random.set_rng_state(state)
    names = [name for name, _ in reversed(layers)]
    return xr.concat(results, xr.DataArray(names, dims="layer", name="layer"))
