"""What keeps a program and its batches from being a target that can be sampled."""

import hashlib
import warnings
from collections import Counter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ppl_med.data.transform_seeds import random_parts
from ppl_med.inference.batches import Loader, num_cases_in
from ppl_med.inference.data_digest import bytes_of
from ppl_med.programs import protocol
from ppl_med.programs.parameters import free_parameters, modules_of, parts_of
from ppl_med.programs.sites import Program, Site, full_name, is_local
from ppl_med.weights.random_weights import find_random_weights

SHOWN = 4


def check_program(model: Program) -> None:
    """Raise where a program has no posterior, or one that moves while it is sampled.

    Raises:
        ValueError: It is trained by a loss, has dropout of its own, norms that follow the batches,
            or parts that follow the steps of training.
    """
    losses = protocol.training_losses(model)
    if losses:
        raise ValueError(
            f"{full_name(model)} is trained by a loss ({'; '.join(losses)}), which is no density "
            "of the observations: there is no posterior to sample; use another likelihood, or fit"
        )
    if protocol.after_steps(model):
        raise ValueError(
            f"{full_name(model)} moves buffers after every step of training, so that there is no "
            "fixed posterior to sample; use fit"
        )
    for part in parts_of(model):
        if isinstance(part, _DropoutNd) and part.p > 0:
            raise ValueError(
                f"the model has {type(part).__name__}(p={part.p:g}), random masks that are no "
                "latents of it, so that its density is not defined; set p=0, or put the network "
                "into RandomWeights, which switches them off"
            )
    for site, weights in find_random_weights(modules_of(model)).items():
        norms = [n for n, m in weights.net.named_modules() if _follows_batches(m)]
        if norms and weights.batch_norm == "update":
            raise ValueError(
                f"the network of {site!r} has {len(norms)} norm layer(s) whose statistics follow "
                f"the batches, first {norms[0]!r}, so that a weight has no density of its own; "
                "build the model with batch_norm='frozen' (which takes the statistics as they "
                "are: of a pretrained net), or use GroupNorm"
            )


def _follows_batches(module: nn.Module) -> bool:
    norm = isinstance(module, _BatchNorm | _InstanceNorm)
    return norm and bool(getattr(module, "track_running_stats", False))


def check_sites(sites: dict[str, Site]) -> None:
    """Raise where latents cannot be sampled.

    Args:
        sites: Latent sites of the model, by name.

    Raises:
        ValueError: There is none, one has a value per case, or one is discrete.
    """
    if not sites:
        raise ValueError("the model has no latent site to sample; put its net into RandomWeights")
    local = [name for name, site in sites.items() if is_local(site)]
    if local:
        raise ValueError(
            f"{', '.join(map(repr, local))} has one value per case: a chain over all cases' "
            "latents says nothing of a new case; integrate it out in the likelihood, or learn it "
            "with fit and a guide such as ConditionalNormal"
        )
    discrete = [name for name, site in sites.items() if site["fn"].support.is_discrete]
    if discrete:
        raise ValueError(
            f"{', '.join(map(repr, discrete))} is discrete, and these kernels need a gradient; "
            "sum it out in the model"
        )


def warn_of_fixed(model: Program) -> None:
    """Warn of parameters that ``fit`` would train and a sampler leaves as they are."""
    found = [
        name
        for module in modules_of(model)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    found += list(free_parameters(model, None))
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        warnings.warn(
            f"{', '.join(found[:SHOWN])}{more} are parameters without a prior: they stay as they "
            "are, and the posterior is that given their values; train them first by fit, or give "
            "them a prior",
            stacklevel=4,
        )


def check_random_data(loader: Loader) -> None:
    """Raise where batches are told to be other ones every time they are read.

    Raises:
        ValueError: They are augmented.
    """
    batches = loader.batches
    steps = [n for n in ("augment", "transform") if getattr(batches, n, None) is not None]
    if not steps and random_parts(getattr(batches, "dataset", None)):
        steps = ["random transforms"]
    if steps:
        raise ValueError(
            f"batches have {' and '.join(steps)}: an augmented case is another observation every "
            "time, so that what is sampled is the posterior of no data set; leave augmentation out"
        )


def all_batches(loader: Loader, names: frozenset[str]) -> list[dict[str, Any]]:
    """The batches of one pass, which must hold every case once, and the same in the next pass.

    Args:
        loader: The batches.
        names: Entries that the model takes.

    Raises:
        ValueError: They do not.
    """
    if loader.visits.by_case is not None:
        raise ValueError(
            "batches draw cases by weights, so that a pass does not hold every case once; pass "
            "the data set without a sampler: a sampler needs all cases"
        )
    first = [{n: v for n, v in batch.items() if n in names} for batch in loader.batches]
    count = sum(map(num_cases_in, first))
    if count != loader.num_cases:
        raise ValueError(
            f"a pass over batches has {count} cases, but num_cases is {loader.num_cases}; a "
            "kernel of all cases needs each once: leave drop_last and subsets out"
        )
    if not isinstance(loader.batches, list | tuple):
        again = [{n: v for n, v in batch.items() if n in names} for batch in loader.batches]
        if _cases_of(first) != _cases_of(again):
            raise ValueError(
                "batches hold other values in a second pass than in the first (augmentation?), so "
                "that the potential has no fixed value; leave random transforms out"
            )
    return first


def _cases_of(batches: list[dict[str, Any]]) -> Counter[bytes]:
    """Digests of all cases, whatever their order."""
    found: Counter[bytes] = Counter()
    for batch in batches:
        tensors = [v for _, v in sorted(batch.items()) if isinstance(v, Tensor) and v.dim()]
        for case in range(num_cases_in(batch)):
            digest = hashlib.sha256()
            for tensor in tensors:
                digest.update(bytes_of(tensor[case]))
            found[digest.digest()] += 1
    return found
