"""The trivial baseline of all counterfactuals: a real image of the other class."""

from collections.abc import Sequence

import torch
import xarray as xr
from torch import Tensor

from ppl_med.explain.counterfactuals.measures import as_numpy, described
from ppl_med.explain.counterfactuals.search import Ids, Pair, Search
from ppl_med.explain.function_checks import Function, as_target, check_image


def nearest_case(  # noqa: D417
    functions: Sequence[Function],
    image: Tensor,
    target: int | Tensor,
    *,
    references: Tensor,
    reference_label: Tensor,
    margin: float = 1.0,
    judges: Sequence[Function] | None = None,
    vae: Pair | None = None,
    particles: int = 64,
    seed: int = 0,
    case: Ids | None = None,
) -> xr.Dataset:
    """The nearest training image of the target class, in L2: no search, and another patient.

    It is realistic by making; a method must change less than it, or explain more.
    Arguments that are not listed are those of ``minimal_perturbation``.

    Args:
        references: Training images, dims (case, channel, ...) of the images' size.
        reference_label: Their classes, dims (case,), every target among them.

    Returns:
        As ``minimal_perturbation``, with ``reference`` (case), the position of the image found.

    Raises:
        TypeError: As ``minimal_perturbation``.
        ValueError: As ``minimal_perturbation``; if the references have another size, or none is of
            a target.
    """
    search = Search(functions, image, target, margin, 1, judges, vae, particles, seed, case)
    check_image(references)
    label = as_target(reference_label, references)
    if references.shape[1:] != search.image.shape[1:]:
        raise ValueError(
            f"references have shape {tuple(references.shape[1:])} a case, but the images "
            f"{tuple(search.image.shape[1:])}; bring them to one size"
        )
    lacking = sorted(set(search.target.tolist()) - set(label.tolist()))
    if lacking:
        raise ValueError(f"references hold no image of the targets {lacking}; add some")
    far = torch.cdist(search.image.flatten(1), references.to(search.image).flatten(1))
    other = label.to(far.device)[None] != search.target[:, None]
    place = far.masked_fill(other, torch.inf).argmin(1)
    found = references.to(search.image)[place]
    result = search.judged(found, search.predictive.log_odds(found) >= margin)
    result = described(result.assign(reference=("case", as_numpy(place))))
    return result.assign_attrs(method="nearest case")
