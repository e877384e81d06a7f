"""Perturbation curves: replace pixels in the order of a map, and follow the output.

References: Samek et al., "Evaluating the visualization of what a deep neural network has learned",
IEEE TNNLS 28 (2017) (pixel flipping); Petsiuk, Das and Saenko, "RISE", BMVC 2018 (insertion and
deletion); Rong et al., "A consistent and efficient evaluation strategy for attribution methods",
ICML 2022 (ROAD's noisy linear imputation).
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve
from torch import Tensor

from ppl_med.axes import SAMPLES
from ppl_med.checks import choice, whole
from ppl_med.explain.attribution.draw_groups import Draw, in_batches
from ppl_med.explain.attribution.score import Output, Score, as_region
from ppl_med.explain.function_checks import (
    Function,
    as_baseline,
    as_target,
    check_functions,
    check_image,
    map_dims,
)
from ppl_med.explain.quality.localization import as_maps

Imputation = Literal["baseline", "road"]
Order = Literal["highest_first", "lowest_first"]


def perturbation_curve(  # noqa: D417
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

    If a map ranks what the net uses, the output falls fast (``highest_first``), and stays when the
    least relevant pixels go first; with ``insert`` pixels of the image come into the baseline, and
    the output rises fast. A random order, drawn from the seed, stands beside it. Arguments that are
    not listed are those of ``attribute``.

    Args:
        attribution: Maps (case, channel, ...), or a Dataset of ``attribute``, whose ``mean`` is
            ranked. Channels are summed: a pixel is replaced in all of them.
        imputation: ``"baseline"`` puts the baseline in (pixel flipping, insertion and deletion);
            ``"road"`` a noisy linear mix of the pixels around, which hides the removed shape, for
            two-dimensional images without ``insert``.
        order: Which pixels go first.
        baseline: What replaces pixels.
        insert: Start from the baseline and put pixels of the image in.
        steps: Number of parts in which the pixels are replaced.
        batch_size: Most images in one forward pass.
        seed: Seed of the random order and of ROAD's noise.

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
    choice("output", output, get_args(Output))
    choice("imputation", imputation, get_args(Imputation))
    choice("order", order, get_args(Order))
    whole("steps", steps)
    whole("batch_size", batch_size)
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
    case, channel, *space = dims = map_dims(image)
    if set(maps.dims) != set(dims):
        raise ValueError(f"attribution must have the dims {dims} of the images, got {maps.dims}")
    values = maps.sum(channel).transpose(case, *space).values.astype(float)
    wanted = (len(image), *image.shape[2:])
    if values.shape != wanted:
        raise ValueError(f"attribution must be of shape {wanted} as the images, got {values.shape}")
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
        rng: Generator of the noise.
        noise: Standard deviation of the noise, as a share of that of the image.
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
    dims = (*SAMPLES, "case", "share")
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
