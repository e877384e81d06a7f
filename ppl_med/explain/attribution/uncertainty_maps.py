"""Attribution of uncertainty: which pixels make the mixture of all draws uncertain.

    entropy            H(p̄)                    p̄ = mean of p_s over draws
    expected entropy   mean of H(p_s)          aleatoric
    mutual information H(p̄) - mean of H(p_s)   epistemic

Each is a mean over draws of a c_s(x) with the mixture held fixed: since Σ_c ∂p̄_c = 0,

    ∇H(p̄) = mean of ∇c_s,    c_s = -Σ_c p_sc log p̄_c    (p̄ not differentiated).

So a method that is linear in the gradient splits over draws. The draws are visited twice, first for
p̄ at every point of the method, then for the gradients, and memory does not grow with their number.

References: Depeweg et al., "Sensitivity analysis for predictive uncertainty in Bayesian neural
networks", 2017; Wang et al., "Gradient-based uncertainty attribution for explainable Bayesian deep
learning", CVPR 2023.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from ppl_med.checks import choice, positive, whole
from ppl_med.explain.attribution.draw_groups import Draw
from ppl_med.explain.attribution.map_datasets import DrawMoments, described, with_completeness
from ppl_med.explain.attribution.method import Method, Task, as_method
from ppl_med.explain.attribution.score import as_region, check_axes, class_logits, region_mean
from ppl_med.explain.function_checks import (
    Function,
    as_baseline,
    as_case,
    check_functions,
    check_gradient,
    check_image,
    map_dims,
)

ROUNDING = 1e-6  # nats: draws that agree have a mutual information of rounding errors
Quantity = Literal["entropy", "expected_entropy", "mutual_information"]


def attribute_uncertainty(  # noqa: D417
    functions: Sequence[Function],
    image: Tensor,
    quantity: Quantity = "mutual_information",
    *,
    method: str | Method = "integrated_gradients",
    region: Tensor | None = None,
    baseline: float | Tensor = 0.0,
    batch_size: int = 256,
    tolerance: float = 0.05,
    case: Sequence[str] | Sequence[int] | None = None,
    keep_draws: bool = False,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Attribute the uncertainty of the mixture of all draws to the pixels.

    Arguments that are not listed are those of ``attribute``.

    Args:
        functions: Image to logits (case, class) or (case, class, row, col), one per draw.
        quantity: What is explained, in nats.
        method: One that is linear in the gradient: saliency, input × gradient, integrated gradients
            or SmoothGrad.
        region: For logits of pixels, as in ``attribute``: the mean over it is explained.
        keep_draws: Also return every draw's contribution, as float32.
        progress: Show a bar over parts of the cases.

    Returns:
        With dims (case, channel, [depth,] row, col): ``mean``, the attribution; ``sd`` and the
        sign probabilities of the draws' contributions to it, and ``mcse``, the Monte
        Carlo standard error with chains as random effects and the mixture held fixed, a lower
        bound with few draws.
        With dims (case): ``quantity`` at the image, and of integrated gradients
        ``completeness_delta`` = Σ attribution - (quantity at image - at baseline), in nats,
        with ``completeness_delta_relative``. With ``keep_draws``: ``attribution`` (chain, draw,
        case, ...), whose mean over draws is the attribution.

    Raises:
        ValueError: As ``attribute`` does; and if the method is not linear in the gradient.
        TypeError: As ``attribute`` does.
    """
    chosen = as_method(method, options)
    choice("quantity", quantity, get_args(Quantity))
    if not chosen.is_linear:
        raise ValueError(
            f"{chosen.name} is not linear in the gradient, so it has no attribution of a mixture; "
            "use 'integrated_gradients', 'input_x_gradient', 'saliency' or 'smooth_grad'"
        )
    whole("batch_size", batch_size)
    positive("tolerance", tolerance)
    check_image(image)
    chosen.validate(image)
    baseline, ids = as_baseline(baseline, image), as_case(case, image)
    image, weights = image.detach(), as_region(region, image)

    def check(name: str, function: Function, output: Any) -> None:
        check_axes(name, output, weights)
        check_gradient(name, output)

    index = check_functions(functions, image, baseline, check)
    results = []
    parts = chosen.tasks(image, baseline, batch_size)
    for part in tqdm(parts, disable=not progress, desc="attribute", unit="part"):
        moments, figures = _part(functions, index, part, chosen, quantity, weights, keep_draws)
        result = moments.dataset(map_dims(image))
        results.append(result.assign({name: ("case", v) for name, v in figures.items()}))
    result = xr.concat(results, "case", data_vars="minimal", combine_attrs="override")
    result["quantity"].attrs.update(units="nats", long_name=quantity.replace("_", " "))
    if chosen.is_complete:
        result = with_completeness(result, tolerance, chosen, ROUNDING)
    result = described(result.assign_coords(case=ids), chosen, "nats", baseline)
    return result.assign_attrs(quantity=quantity)


def _part(
    functions: Sequence[Function],
    index: xr.DataArray,
    task: Task,
    method: Method,
    quantity: Quantity,
    region: Tensor | None,
    keep_draws: bool,
) -> tuple[DrawMoments, dict[str, Any]]:
    """Moments over draws of some cases' contributions, and figures (case,) of their mean."""
    mixture = _Mixture(functions)
    method.maps(mixture, task)
    mixture.value(task.image, task.rows)
    moments = DrawMoments(tuple(task.image.shape), index, keep_draws)
    figures: dict[str, Any] = {}
    for function in functions:
        draw = _Contribution(function, quantity, region, mixture.log_means)
        maps = method.maps(draw, task)
        moments.update(maps.values[0].double().cpu().numpy())
        parts = {"quantity": draw.value(task.image, task.rows), "total": maps.total}
        for name, part in parts.items():
            if part is not None:
                value = part[0].double().cpu().numpy() / len(functions)
                figures[name] = figures.get(name, 0.0) + value
    if "total" in figures:
        mean = moments.mean.reshape(len(moments.mean), -1)
        figures["completeness_delta"] = mean.sum(1) - figures["total"]
        figures["mass"] = np.abs(mean).sum(1)
    return moments, figures


class _Mixture:
    """Stands in for a draw and notes the log-probabilities of the mixture wherever it is asked."""

    num_draws = 1

    def __init__(self, functions: Sequence[Function]) -> None:
        self.functions = functions
        self.log_means: list[Tensor] = []

    def value(self, points: Tensor, rows: Tensor) -> Tensor:
        """Note the mixture at the points; the zeros returned are not used."""
        self._note(points)
        return points.new_zeros(1, len(points))

    def gradient(self, points: Tensor, rows: Tensor) -> Tensor:
        """Note the mixture at the points; the zeros returned are not used."""
        self._note(points)
        return torch.zeros_like(points)[None]

    @torch.no_grad()
    def _note(self, points: Tensor) -> None:
        mean: Any = 0.0
        for function in self.functions:
            probs = class_logits(function(points.clone())).softmax(1)
            mean = mean + probs / len(self.functions)
        self.log_means.append(mean.clamp(min=torch.finfo(mean.dtype).tiny).log())


class _Contribution(Draw):
    """One draw's share of an uncertainty; ``log_means`` is the mixture at each call to come."""

    def __init__(
        self,
        function: Function,
        quantity: Quantity,
        region: Tensor | None,
        log_means: Sequence[Tensor],
    ) -> None:
        super().__init__(function, self._share)
        self.quantity, self.region = quantity, region
        self.log_means = iter(log_means)

    def _share(self, output: Tensor, rows: Tensor) -> Tensor:
        log_mean = next(self.log_means)
        log_probs = class_logits(output).log_softmax(1)
        terms = {
            "entropy": -log_mean,
            "expected_entropy": -log_probs,
            "mutual_information": log_probs - log_mean,
        }
        share = (log_probs.exp() * terms[self.quantity]).sum(1)
        return region_mean(share, None if self.region is None else self.region[rows])
