"""Attribution under every posterior draw, which is one deterministic function f_s.

An attribution method gives one map a_s per draw, and the maps are draws from the posterior of the
attribution. Kept are their first two moments, the probability of each sign, and how far each map
is from the sum that it should have (completeness).

References: Bykov et al., "How much can I trust you? Quantifying uncertainties in explaining neural
networks", 2020 (maps over posterior draws); Sundararajan, Taly and Yan, "Axiomatic attribution for
deep networks", ICML 2017 (the 5 % rule for the completeness delta).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from ppl_med.axes import SAMPLES
from ppl_med.checks import choice, positive, whole
from ppl_med.explain.attribution.draw_groups import Draw, DrawGroup, StackedDraws
from ppl_med.explain.attribution.map_datasets import (
    DrawMoments,
    described,
    figures_of,
    with_completeness,
)
from ppl_med.explain.attribution.method import Method, Task, as_method
from ppl_med.explain.attribution.score import Output, Score, as_region
from ppl_med.explain.function_checks import (
    Function,
    as_baseline,
    as_case,
    as_target,
    check_functions,
    check_gradient,
    check_image,
    map_dims,
)


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
        target: The class to explain, or the position of a number (0 if left out); one for all
            cases or a tensor (case).
        method: Name of a method, or one of the classes of ``ppl_med.explain.attribution``.
        output: What is explained. Softmax ignores a constant added to all logits, so draws of
            ``"logit"`` may differ by a shift that no prediction shows; the probabilities have no
            such freedom. ``"value"`` is a number as it is, for regression.
        region: For outputs with space: the pixels whose mean is explained, (case, row, col) on the
            output's grid, bool or 0 and 1.
        baseline: An image without evidence, where the path of integrated gradients starts and which
            occlusion puts in: an intensity, or a tensor of the image's shape (a blurred image, a
            healthy reference). Not used by methods without a reference.
        batch_size: Most images in one forward and backward pass (cases times steps times draws).
        draws_at_once: Draws whose gradients are taken in one pass by ``torch.func.vmap``, for
            gradient methods and LRP of functions that are one network with different parameters.
            By default 1 on a CPU, where a loop is as fast, and 8 on a GPU, where possible, which
            has not been measured.
        tolerance: For methods that should be complete: a delta beyond this share of the known
            total, such as ``|f(image) - f(baseline)|``, is counted and warned of. Where positive
            and negative pixels nearly cancel, a tenth of Σ |attribution| stands in for that total.
        case: Ids of the cases; 0, 1, ... by default.
        keep_draws: Also return every map, as float32.
        progress: Show a bar over draws.
        options: Options of a method given by name, such as ``steps=64`` of integrated gradients.

    Returns:
        With dims (case, channel, [depth,] row, col): ``mean`` and ``sd`` over draws (in the
        output's unit; saliency per unit of intensity), ``mcse``, the Monte Carlo standard error of
        the mean with chains as random effects, ``probability_positive`` and
        ``probability_negative``, the shares of draws above and below 0. Functions that are copies
        of others in their chain (members of an ensemble, drawn again) do not count as draws. Where
        the attribution is exactly 0 (a pixel equal to the baseline) both are 0; their standard
        error is at most ``attrs["probability_mcse_max"]``. With one function all but ``mean`` are
        NaN and ``attrs["note"]`` says why. Class activation maps have one channel.

        With dims (chain, draw, case), for methods that should be complete: ``completeness_delta`` =
        Σ attribution - total, in the output's unit, and ``completeness_delta_relative``, over
        |total|; ``attrs`` say how many are ``completeness_beyond_tolerance``. ``bias_attribution``
        belongs to no pixel (biases of layers without space). ``conservation`` = Σ attribution /
        f(image) and ``noise_error`` stand beside methods that have them.

        With ``keep_draws``: ``attribution`` (chain, draw, case, ...). ``target`` (case) is the
        class explained.

    Raises:
        ValueError: If an argument does not fit, the method is not valid for the functions (the
            message names one that is), a function's output is not finite, two equal calls of a
            function differ (dropout left on, or weights drawn inside: a gradient through it
            explains no one function), a case's output depends on the other cases (BatchNorm in
            training mode), or the output carries no gradient.
        TypeError: If ``image`` or ``baseline`` is not a floating-point tensor, ``target`` not an
            integer, or the method has no such option.
    """
    chosen = as_method(method, options)
    choice("output", output, get_args(Output))
    whole("batch_size", batch_size)
    positive("tolerance", tolerance)
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
        whole("draws_at_once", draws_at_once)
        if draws_at_once > 1 and not chosen.takes_groups:
            raise ValueError(f"{chosen.name} visits draws one by one; leave draws_at_once out")
    image, target = image.detach(), as_target(0 if target is None else target, image)
    score = Score(output, target, as_region(region, image))
    first = chosen.tasks(image, baseline, batch_size)[0].split(1)[0]
    index = check_functions(functions, image, baseline, _checker(chosen, score, first))

    moments, found = None, []
    bar = tqdm(total=len(functions), disable=not progress, desc="attribute", unit="draw")
    for group in _groups(functions, score, image[:1], chosen, draws_at_once):
        parts = chosen.tasks(image, baseline, max(1, batch_size // group.num_draws))
        maps = [chosen.maps(group, part) for part in parts]
        values = torch.cat([part.values for part in maps], 1).detach().double().cpu().numpy()
        if moments is None:
            moments = DrawMoments(tuple(values.shape[1:]), index, keep_draws)
        found.append(figures_of(maps))
        for value in values:
            moments.update(value)
        bar.update(group.num_draws)
    bar.close()
    assert moments is not None
    result = moments.dataset(map_dims(image))
    dims = (*SAMPLES, "case")
    for name in found[0]:
        result[name] = dims, np.concatenate([part[name] for part in found])[index.values]
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
    """Yield the draws one by one, or several stacked where that is asked for and possible."""
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


def _checker(method: Method, score: Score, task: Task) -> Callable[[str, Function, Any], None]:
    """What every function is tried for: the output's axes and classes, gradient, the method."""

    def check(name: str, function: Function, output: Any) -> None:
        score.check(name, output)
        if method.needs_gradient:
            check_gradient(name, output)
        method.check_function(Draw(function, score), name, task)

    return check
