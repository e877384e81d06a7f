"""What ``fit`` finds out before the first step: does everything run, and what is there to train?"""

import re
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_med.data.validation import check_batch
from ppl_med.inference.batches import BatchSpec, check_iterable, first_batch
from ppl_med.inference.guides.stock import check_stock_guide
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler, is_stored
from ppl_med.inference.training.heldout import heldout_nll
from ppl_med.inference.training.reached_weights import check_reached
from ppl_med.programs.elbo import elbo_terms
from ppl_med.programs.parameters import StoreNames, move, remember_store_names, set_mode, trainable
from ppl_med.programs.sites import (
    Program,
    argument_names,
    batch_size,
    case_dim,
    describe,
    is_local,
    required_arguments,
    sample_sites,
    select_arguments,
    takes_num_cases,
    to_device,
)


@dataclass
class DryRun:
    """What a first run showed.

    Attributes:
        parameters: What there is to train.
        local_latents: Latent sites with one value per case.
        states: Those of a noising process, whose KL is how well the net undoes it.
    """

    parameters: list[Tensor]
    local_latents: frozenset[str]
    states: frozenset[str]

    @classmethod
    def of(
        cls,
        model: Program,
        guide: Program,
        batch: dict[str, Any],
        num_cases: int,
        device: torch.device,
    ) -> "DryRun":
        """Run a pair once without learning; lazily made parameters come to be.

        Raises:
            ValueError: If the two do not run on the batch, do not fit each other, observe nothing,
                have nothing to train, or have random weights that the likelihood does not reach.
        """
        for program, role in ((model, "model"), (guide, "guide")):
            if not takes_num_cases(program):
                raise ValueError(
                    f"the {role} takes no keyword num_cases; write it as "
                    f"{role}(image, label=None, *, num_cases=None) with "
                    'pyro.plate("case", num_cases or len(image), subsample=image)'
                )
        move((model, guide), device)
        set_mode((model, guide), False)
        values = to_device(select_arguments(model, batch), device)
        options = {**values, "num_cases": num_cases}
        names = StoreNames()
        try:
            with torch.no_grad(), pyro.validation_enabled(True), names:
                sites = sample_sites(poutine.trace(model).get_trace(**options))
                check_observed(model, sites, batch_size(values), num_cases)
                # Whether a proposal learns shows only with gradients.
                check_reached(model, guide, lambda: elbo_terms(model, guide, **options))
                check_stock_guide(guide)
                one = {n: v[:1] if isinstance(v, Tensor) else v for n, v in values.items()}
                # An observation without a default must be given, here too.
                needed = required_arguments(model)
                bare = {n: v for n, v in one.items() if n not in sites or n in needed}
                PosteriorSampler(model, guide, bare, 0, 0).check_function()
        except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
            raise not_running(error, values) from error
        remember_store_names((model, guide), names.names)
        move((model, guide), device)
        parameters = trainable(model, guide)
        if not parameters:
            raise ValueError(
                "neither the model nor the guide has a parameter to train; check requires_grad"
            )
        if any(parameter.is_inference() for parameter in parameters):
            raise ValueError(
                "the model or the guide was made under torch.inference_mode, so that its "
                "parameters take no gradient; make it outside"
            )
        # A latent that nobody reads, as a state of a noising process, may carry nothing.
        local = {n: s for n, s in sites.items() if is_local(s) and not s["is_observed"]}
        stored = frozenset(name for name, site in local.items() if is_stored(site))
        return cls(parameters, stored, frozenset(local) - stored)


def check_observed(
    model: Program, sites: dict[str, dict[str, Any]], size: int, num_cases: int
) -> None:
    """Raise where a model lacks an observation, or its plate of cases stands for other cases.

    Args:
        model: The model.
        sites: Its sample sites on a batch.
        size: Cases of the batch.
        num_cases: Size of the data set.

    Raises:
        ValueError: It does.
    """
    arguments = argument_names(model)
    for name, site in sites.items():
        if name not in arguments:
            continue
        if not site["is_observed"]:
            raise ValueError(
                f"batches have no {name!r}, which the model observes; to train, every batch needs "
                f"it: {{..., {name!r}: Tensor}}"
            )
        case_dim(site)
        frame = next(f for f in site["cond_indep_stack"] if f.name == "case")
        if (frame.size, frame.full_size) != (size, num_cases):
            raise ValueError(
                f"site {name!r}: the plate of cases stands for {frame.full_size} cases of which "
                f"{frame.size} are drawn, but num_cases is {num_cases} and the batch has {size}; "
                "write pyro.plate('case', num_cases or len(image), subsample=image)"
            )


def not_running(error: Exception, values: dict[str, Any]) -> Exception:
    """What to raise where a program stopped on its first batch."""
    if isinstance(error, torch.OutOfMemoryError):
        return error
    image = values.get("image")
    channels = re.search(r"to have (\d+) channels, but got (\d+) channels", str(error))
    if channels and isinstance(image, Tensor) and image.shape[1] == int(channels[2]):
        try:
            check_batch({"image": image.cpu()}, in_channels=int(channels[1]))
        except (TypeError, ValueError) as known:
            return known
    doubles = [n for n, v in values.items() if isinstance(v, Tensor) and v.dtype == torch.float64]
    if doubles and re.search(r"dtype|scalar type|Double|double", str(error)):
        return ValueError(
            f"{doubles[0]} has dtype torch.float64 and the network float32 weights, it seems: "
            f"pass {doubles[0]}.float(), or call .double() on model and guide "
            f"({type(error).__name__}: {error})"
        )
    return ValueError(
        f"the model or the guide does not run on the first batch ({describe(values)}): "
        f"{type(error).__name__}: {error}. Check the shapes and types of these arguments against "
        "what the network takes"
    )


def check_validation(
    model: Program, guide: Program, validation: Any, spec: BatchSpec, device: torch.device
) -> None:
    """Raise where validation batches cannot be scored; scores the first of them by one draw."""
    check_iterable(validation, "validation")
    first = first_batch(validation, "validation")
    try:
        spec.check(first)
        heldout_nll(model, guide, [first], device, 1, 0)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"validation: {error}") from error
