"""The evidence lower bound, term by term.

    ELBO = E_q[log p(observed | latents)] - KL(q(latents) || p(latents))        in nats

The KL is the closed form where one is registered and its one-draw Monte Carlo estimate otherwise.
Only the terms that are needed are computed, and nothing waits for the device.

Two traps of ``TraceMeanField_ELBO`` are avoided: a Delta site's log-density is kept (so stock
AutoGuides over constrained sites are right), and a guide site whose plate scale differs from the
model's raises.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ppl_med.programs.protocol import left_to_prior
from ppl_med.programs.sites import (
    Program,
    argument_names,
    case_dim,
    check_densities,
    is_local,
    sample_sites,
    scaled,
)

Terms = dict[str, Tensor]


def elbo_terms(
    model: Program, guide: Program, /, *inputs: Any, **options: Any
) -> tuple[Terms, Terms]:
    """One draw of the negative log-likelihood and of the KL divergence.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the model's signature.
        inputs: Positional arguments of both.
        options: Keyword arguments of both, such as ``num_cases``.

    Returns:
        Two dicts by site name, of zero-dimensional tensors in nats for the whole data set: the
        negative log-likelihood of every observed site, and the KL of every latent site.

    Raises:
        ValueError: If guide and model do not propose the same latents, if their plate scales
            differ, or if a guide site cannot be reparameterised.
    """
    guide_trace = poutine.trace(guide).get_trace(*inputs, **options)
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*inputs, **options)
    check_sites(model, guide, sample_sites(model_trace), sample_sites(guide_trace))
    return terms_of(model_trace, guide_trace)


def terms_of(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> tuple[Terms, Terms]:
    """As ``elbo_terms``, of the traces of a guide and of a model that was replayed with it."""
    nll: Terms = {}
    kl: Terms = {}
    sites, proposed = sample_sites(model_trace), sample_sites(guide_trace)
    for name, site in sites.items():
        if site["is_observed"]:
            nll[name] = -scaled(site["fn"].log_prob(site["value"]), site).sum()
        elif name in proposed:
            kl[name] = _site_kl(name, proposed[name], site)
    # Stock AutoGuides have auxiliary sites, which the model does not know: log q alone.
    for name, site in proposed.items():
        if name not in sites:
            kl[name] = scaled(site["fn"].log_prob(site["value"]), site).sum()
    return nll, kl


def check_sites(
    model: Program, guide: Program, sites: Mapping[str, Any], proposed: Mapping[str, Any]
) -> None:
    """Raise where the sample sites of a guide and of a model do not fit each other.

    Raises:
        ValueError: If a latent is neither proposed nor left to the prior on purpose, if the guide
            proposes what the model does not have, if the model observed nothing, or if a
            log-density has another shape than its site's plates.
    """
    for name, site in sites.items():
        if name in argument_names(model) and not site["is_observed"]:
            raise ValueError(
                f"the model observed no {name!r}: pass it in the batch, as batch[{name!r}]"
            )
    for fault in latent_faults(sites, proposed, left_to_prior(guide)):
        raise ValueError(fault)
    if not any(site["is_observed"] for site in sites.values()):
        raise ValueError(
            "the model observed nothing: pass the observation in the batch under the name of the "
            "observation site, such as batch['label']"
        )
    check_densities(sites)
    check_densities(proposed)


def latent_faults(
    sites: Mapping[str, Any], proposed: Mapping[str, Any], left: frozenset[str]
) -> Iterator[str]:
    """Sentences about the latents that a guide lacks, and about those it has too many.

    ``left`` are local latents that the guide leaves to the prior.
    """
    for name, site in sites.items():
        if site["is_observed"] or name in proposed:
            continue
        needed = (site["infer"] or {}).get("needs")
        if needed is not None:
            yield (
                f"the guide does not propose the latent site {name!r} of the model, which only "
                f"{needed} can; join it with the guide over the weights: "
                f"Guides(PointEstimate(model), {needed})"
            )
        elif not follows_prior(site, name, left):
            yield (
                f"the guide does not propose the latent site {name!r} of the model; add it to the "
                "guide, join guides with Guides(first, second), or leave a latent of each case to "
                f"the prior by FromPrior({name!r})"
            )
        elif not is_local(site):
            yield (
                f"the guide leaves {name!r} to the prior, but that is shared by all cases; propose "
                "it, or nothing is learned of it"
            )
    for name, site in proposed.items():
        if name not in sites and not (site["infer"] or {}).get("is_auxiliary"):
            yield (
                f"the guide proposes {name!r}, which is no latent site of the model; rename or "
                "remove it, or mark it infer={'is_auxiliary': True}"
            )


def bound_by_case(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
    """The ELBO of every case given the latents that all cases share, dims (case,), in nats.

    Args:
        model_trace: Of a model that was replayed with the guide's draws and conditioned.
        guide_trace: Of the guide.
    """
    sites, proposed = sample_sites(model_trace), sample_sites(guide_trace)
    total: Tensor | float = 0.0
    for name, site in sites.items():
        if not is_local(site):
            continue
        if site["is_observed"]:
            term = scaled(site["fn"].log_prob(site["value"]), site)
        elif name in proposed:
            term = -_divergence(name, proposed[name], site)
        else:
            continue  # it follows the prior
        by_case = term.movedim(case_dim(site), 0)
        total = total + by_case.reshape(len(by_case), -1).double().sum(1)
    assert isinstance(total, Tensor)
    return total


def _site_kl(name: str, q: dict[str, Any], p: dict[str, Any]) -> Tensor:
    return _divergence(name, q, p).sum()


def _divergence(name: str, q: dict[str, Any], p: dict[str, Any]) -> Tensor:
    """KL of a site, or its one-draw estimate, with the scale of its plates, dims as the plates."""
    if isinstance(q["scale"], float | int) and q["scale"] != p["scale"]:
        raise ValueError(
            f"site {name!r}: the guide scales its log-density by {q['scale']}, the model by "
            f"{p['scale']}; give the guide's plate the same size=num_cases and subsample"
        )
    q_fn, p_fn = q["fn"], p["fn"]
    if not isinstance(_bare(q_fn), dist.Delta):  # whose registered KL drops the density
        if not (q_fn.has_rsample or is_fixed(q_fn)):
            raise ValueError(
                f"guide site {name!r} ({type(q_fn).__name__}) cannot be reparameterised; "
                "fit needs rsample: marginalise the site or propose a continuous relaxation"
            )
        with contextlib.suppress(NotImplementedError):
            return scaled(kl_divergence(q_fn, p_fn), p)
    value = q["value"]
    if not isinstance(value, Tensor):  # drawn only where a layer uses it, see LazyWeights
        value = q_fn.shared_draw()
    return scaled(q_fn.log_prob(value), q) - scaled(p_fn.log_prob(value), p)


def _bare(fn: Any) -> Any:
    """A distribution without its wrappers for event axes and masks."""
    while isinstance(fn, Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def total(terms: Terms) -> Tensor:
    """Sum of the terms, zero-dimensional, in nats."""
    if not terms:
        return torch.zeros(())
    values = list(terms.values())
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def follows_prior(site: Mapping[str, Any], name: str, left: frozenset[str]) -> bool:
    """Whether a latent site follows its prior on purpose; ``left`` is as ``left_to_prior`` says."""
    return name in left or not (site["infer"] or {}).get("proposed", True)


def is_fixed(fn: Any) -> bool:
    """Whether no parameter of a distribution learns, so that its draws need no gradient."""
    fn = _bare(fn)
    values = (getattr(fn, name) for name in fn.arg_constraints if name in vars(fn))
    return not any(isinstance(value, Tensor) and value.requires_grad for value in values)
