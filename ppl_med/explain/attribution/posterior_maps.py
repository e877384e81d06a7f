"""Attribution of a Bayesian network: which pixels speak for a class, and how surely they do.

Every posterior draw is one deterministic function f_s, so an attribution method gives one map a_s
per draw, and the maps are draws from the posterior of the attribution. This file keeps their first
two moments and the probability of each sign, and beside them what the method misses of the sum it
should have (completeness), draw by draw and case by case.

References: Bykov et al., "How much can I trust you? Quantifying uncertainties in explaining neural
networks", 2020 (maps over posterior draws); Sundararajan, Taly and Yan, "Axiomatic attribution for
deep networks", ICML 2017 (the 5 % rule for the completeness delta). Each method's own reference is
in its file.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from ppl_med.explain.attribution.catalogue import as_method
from ppl_med.explain.attribution.draws import Draw, DrawGroup, Function
from ppl_med.explain.attribution.method import Maps, Method, Task
from ppl_med.explain.attribution.score import SPACE, Output, Score, as_region
from ppl_med.explain.attribution.stacked_draws import StackedDraws
from ppl_med.explain.draw_moments import DrawMoments
from ppl_med.explain.function_checks import (
    as_baseline,
    as_case,
    as_target,
    check_choice,
    check_count,
    check_functions,
    check_gradient,
    check_image,
)

LONG_NAMES = {
    "mean": "mean attribution over draws",
    "sd": "standard deviation of the attribution over draws",
    "mcse": "Monte Carlo standard error of the mean",
    "attribution": "attribution",
    "noise_error": "root mean square standard error over noisy copies",
    "completeness_delta": "sum of attributions minus the total",
    "completeness_delta_relative": "completeness delta over the total",
    "unlocated": "part of the total that belongs to no pixel",
    "conservation": "sum of attributions over the explained number",
    "probability_positive": "share of draws with positive attribution",
    "probability_negative": "share of draws with negative attribution",
}


def attribute(
    functions: Sequence[Function],
    image: Tensor,
    target: int | Tensor | None = None,
    *,
    method: str | Method = "integrated_gradients",
    output: Output = "logit",
    region: Tensor | None = None,
    baseline: float | Tensor = 0.0,
    batch_size: int = 256,
    draws_at_once: int | None = None,
    tolerance: float = 0.05,
    case: Sequence[str] | Sequence[int] | None = None,
    keep_draws: bool = False,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Attribute one output of every case to its pixels, under every posterior draw.

    Draws are visited one after the other and folded into running moments, so memory does not grow
    with their number unless ``keep_draws`` is set. All draws of all chains count the same.

    Args:
        functions: One deterministic callable per posterior draw, image (case, channel, row, col) to
            logits (case, class), logits of pixels (case, class, row, col) or numbers, as
            ``ppl_med.inference.functions`` gives them. One logit is the log-odds of class 1.
            Integer attributes ``chain`` and ``draw`` label the result; callables with neither
            become draws 0, 1, ... of chain 0.
        image: Images (case, channel, row, col) or volumes (case, channel, depth, row, col),
            floating point, on the functions' device.
        target: The class to explain, or the position of a number; one for all cases or a tensor
            (case) of them. For numbers 0 if left out.
        method: Name of a method, or one of the classes of ``ppl_med.explain.attribution``.
        output: What is explained. Softmax ignores a constant added to all logits, so draws of
            ``"logit"`` may differ by a shift that no prediction shows; the probabilities have no
            such freedom. ``"value"`` is a number as it is, for regression.
        region: For outputs with space: the pixels to explain, (case, row, col) on the output's
            grid, bool or 0 and 1. The explained number is the mean over them.
        baseline: An image without evidence: where the path of integrated gradients starts, what
            occlusion puts in. An intensity, or a tensor of the image's shape (a blurred image, a
            healthy reference). Not used by methods without a reference.
        batch_size: Most images in one forward and backward pass (cases times steps times draws).
        draws_at_once: Draws whose gradients are taken in one pass by ``torch.func.vmap``, for
            methods of the gradient family and LRP, and functions that are one network with
            different parameters. By default 8 on a GPU, where that can be done, and 1 on a CPU,
            where a loop is as fast.
        tolerance: Methods that should be complete: a delta beyond this share of the known total,
            such as ``|f(image) - f(baseline)|``, is counted and warned of. Where positive and
            negative pixels nearly cancel, a tenth of Σ |attribution| stands in for that total.
        case: Ids of the cases; 0, 1, ... by default.
        keep_draws: Also return every map, as float32.
        progress: Show a bar over draws.
        options: Options of a method given by name, such as ``steps=64`` of integrated gradients.

    Returns:
        With dims (case, channel, [depth,] row, col): ``mean`` and ``sd`` over draws (in the
        output's unit; saliency per unit of intensity), ``mcse``, the Monte Carlo standard error of
        the mean for independent draws, ``probability_positive`` and ``probability_negative``, the
        shares of draws above and below 0. Where the attribution is exactly 0 (a pixel equal to the
        baseline) both are 0; their standard error is at most ``probability_mcse_max`` in
        ``attrs``. With one function ``sd``, ``mcse`` and both probabilities are NaN and
        ``attrs["note"]`` says why. Class activation maps have one channel.

        With dims (chain, draw, case), for methods that should be complete: ``completeness_delta`` =
        Σ attribution - total, in the output's unit, and ``completeness_delta_relative``, over
        |total|; ``attrs`` say how many are ``completeness_beyond_tolerance``. ``unlocated`` is what
        belongs to no pixel (biases of layers without space). ``conservation`` = Σ attribution /
        f(image) and ``noise_error`` stand beside methods that have them.

        With ``keep_draws``: ``attribution`` (chain, draw, case, ...). ``target`` (case) names
        the class explained.

    Raises:
        ValueError: If an argument does not fit, the method is not valid for the functions (the
            message names one that is), a function's output is not finite, two equal calls of a
            function differ (dropout left on, or weights drawn inside: a gradient through it
            explains no one function), a case's output depends on the other cases (BatchNorm in
            training mode), or the output carries no gradient.
        TypeError: If ``image`` or ``baseline`` is not a floating-point tensor, ``target`` no
            integer, or the method has no such option.
    """
    chosen = as_method(method, options)
    check_choice("output", output, Output)
    check_count("batch_size", batch_size)
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; it must be above 0")
    check_image(image)
    chosen.validate(image)
    if output not in chosen.outputs:
        raise ValueError(
            f"{chosen.name} is not valid for output={output!r}; use "
            f"{' or '.join(map(repr, chosen.outputs))}, or method='integrated_gradients'"
        )
    if target is None and output != "value":
        raise ValueError("target is missing; give the class to explain")
    baseline, ids = as_baseline(baseline, image), as_case(case, image)
    if draws_at_once is not None:
        check_count("draws_at_once", draws_at_once)
        if draws_at_once > 1 and not chosen.takes_groups:
            raise ValueError(f"{chosen.name} visits draws one by one; leave draws_at_once out")
    image, target = image.detach(), as_target(0 if target is None else target, image)
    score = Score(output, target, as_region(region, image))
    parts = tasks(image, baseline, chosen, batch_size)
    index = check_functions(functions, image, baseline, _checker(chosen, score, parts[0]))

    moments, checks = None, Checks(len(functions), len(image))
    bar = tqdm(total=len(functions), disable=not progress, desc="attribute", unit="draw")
    for group in _groups(functions, score, image[:1], chosen, draws_at_once):
        parts = tasks(image, baseline, chosen, max(1, batch_size // group.num_draws))
        maps = [chosen.maps(group, part) for part in parts]
        values = torch.cat([part.values for part in maps], 1).detach().double().cpu().numpy()
        if moments is None:
            moments = DrawMoments(tuple(values.shape[1:]), len(functions), keep_draws)
        checks.add(moments.count, maps)
        for value in values:
            moments.update(value)
        bar.update(group.num_draws)
    bar.close()
    assert moments is not None
    result = moments.dataset(("case", "channel", *SPACE[image.ndim]), index)
    dims = ("chain", "draw", "case")
    figures = {name: (dims, values[index.values]) for name, values in checks.values.items()}
    result = xr.merge([result, xr.Dataset(figures)], combine_attrs="no_conflicts")
    if chosen.is_complete:
        result = with_completeness(result, tolerance, chosen)
    result = result.assign_coords(case=ids).assign(target=("case", target.cpu().numpy()))
    unit = {"probability": "probability", "value": "1"}.get(output, "nats")
    result = described(result, chosen, unit, baseline)
    return result.assign_attrs(output=output)


def _groups(
    functions: Sequence[Function],
    score: Score,
    example: Tensor,
    method: Method,
    draws_at_once: int | None,
) -> Iterator[DrawGroup]:
    """Yield the draws one by one, or several stacked where that is asked for and can be done."""
    size = draws_at_once or (8 if example.is_cuda and method.takes_groups else 1)
    for start in range(0, len(functions), size):
        part = [functions[place] for place in range(start, min(start + size, len(functions)))]
        if len(part) > 1:
            try:
                yield StackedDraws(part, score, example)
                continue
            except (ValueError, RuntimeError) as error:
                if draws_at_once:
                    raise ValueError(
                        f"draws_at_once is {draws_at_once}, and the functions cannot be stacked "
                        f"({error}); leave it out"
                    ) from error
        for function in part:
            yield Draw(function, score)


def tasks(image: Tensor, baseline: Tensor, method: Method, batch_size: int) -> list[Task]:
    """Cut the cases into parts whose points fit a batch."""
    size = max(1, batch_size // method.points_per_case)
    rows = torch.arange(len(image), device=image.device)
    return [Task(image[part], baseline[part], part, batch_size) for part in rows.split(size)]


def _checker(method: Method, score: Score, task: Task) -> Callable[[str, Function, Any], None]:
    """What every function is tried for: the output's axes and classes, gradient, the method."""
    first = Task(task.image[:1], task.baseline[:1], task.rows[:1], task.batch_size)

    def check(name: str, function: Function, output: Any) -> None:
        score.check(name, output)
        if method.needs_gradient:
            check_gradient(name, output)
        method.check_function(Draw(function, score), name, first)

    return check


class Checks:
    """Figures by name, (draw, case), that arrive draw by draw.

    Args:
        num_draws: How many draws will come.
        num_cases: How many cases each has.
    """

    def __init__(self, num_draws: int, num_cases: int) -> None:
        self.shape = num_draws, num_cases
        self.values: dict[str, np.ndarray] = {}

    def add(self, position: int, maps: Sequence[Maps]) -> None:
        """Keep the figures of a group of draws.

        Args:
            position: Of its first draw.
            maps: Its maps of all cases, in parts.
        """
        figures = [self._figures(part) for part in maps]
        for name in figures[0]:
            values = torch.cat([part[name] for part in figures], 1).detach().double().cpu().numpy()
            kept = self.values.setdefault(name, np.full(self.shape, np.nan))
            kept[position : position + len(values)] = values

    @staticmethod
    def _figures(maps: Maps) -> dict[str, Tensor]:
        figures = dict(maps.checks)
        if maps.unlocated is not None:
            figures["unlocated"] = maps.unlocated
        if maps.total is not None:
            values = maps.values.detach().double()
            found = values.flatten(2).sum(2)
            if maps.unlocated is not None:
                found = found + maps.unlocated
            figures["total"] = maps.total.double()
            figures["completeness_delta"] = found - maps.total
            figures["mass"] = values.abs().flatten(2).sum(2)
        return figures


def with_completeness(
    result: xr.Dataset, tolerance: float, method: Method, rounding: float = 0.0
) -> xr.Dataset:
    """Add the relative delta, count what exceeds the tolerance, and warn of it.

    Args:
        result: With ``completeness_delta``, ``total`` and ``mass``; the last two are dropped.
        tolerance: Largest share of the total that goes unremarked.
        method: The method, for its name and advice.
        rounding: A delta up to this is no delta, in the output's unit.
    """
    delta, total = result["completeness_delta"], np.abs(result["total"])
    with np.errstate(divide="ignore", invalid="ignore"):
        result["completeness_delta_relative"] = xr.where(delta == 0, 0.0, delta / total)
    allowed = tolerance * np.maximum(total, result["mass"] / 10)
    is_beyond = np.abs(delta) > np.maximum(allowed, rounding)
    beyond = int(is_beyond.sum())
    if beyond:
        names = method.name.replace("_", " ")
        warnings.warn(
            f"{names}: Σ attribution misses more than {tolerance:g} of its total in {beyond} of "
            f"{delta.size} ({', '.join(str(dim) for dim in delta.dims[-2:])}) pairs, by "
            f"{float(abs(delta).where(is_beyond).max()):.3g} at most; {method.advice}",
            UserWarning,
            stacklevel=3,
        )
    result = result.drop_vars(["total", "mass"])
    return result.assign_attrs(
        completeness_tolerance=tolerance, completeness_beyond_tolerance=beyond
    )


def described(result: xr.Dataset, method: Method, unit: str, baseline: Tensor) -> xr.Dataset:
    """Write units and settings into the attributes.

    Args:
        result: The maps and their figures.
        method: What made them.
        unit: Of the explained number.
        baseline: What the images were compared with.
    """
    of_map = method.unit.format(unit)
    units = dict.fromkeys(("mean", "sd", "mcse", "attribution", "noise_error"), of_map)
    units |= dict.fromkeys(("completeness_delta", "unlocated"), unit)
    units |= dict.fromkeys(("completeness_delta_relative", "conservation"), "1")
    units |= dict.fromkeys(("probability_positive", "probability_negative"), "probability")
    for name in set(units) & set(result.data_vars):
        result[name].attrs["units"] = units[name]
        result[name].attrs["long_name"] = LONG_NAMES[name]
    if method.uses_baseline:
        uniform = bool((baseline == baseline.flatten()[0]).all())
        result.attrs["baseline"] = float(baseline.flatten()[0]) if uniform else "tensor"
    return result.assign_attrs(method=method.name, **method.settings())
