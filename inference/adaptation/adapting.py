"""``adapt``: statistics of BatchNorm over all images of a domain, for every posterior draw.

They are those of the whole domain as one batch (`domain`), for the weights of each draw. With a
source share w, a layer normalises by the statistics of w source and 1 - w domain cases pooled
(Schneider et al., NeurIPS 2020, arXiv:2006.16971; departure: the pooled variance counts the
distance between the two means). ``prior_cases`` N gives w = N / (N + n). ``Beta(a, b)`` draws w
anew for every draw, so that the posterior predictive integrates over how far to adapt (as InTEnt
does, arXiv:2402.09604), from the prior or, with ``evidence``, from a posterior (`source_share`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ppl_med.checks import choice, finite, positive, reject, whole
from ppl_med.data.reversible import Augmentation
from ppl_med.inference.adaptation.domain import Domain, checked_views
from ppl_med.inference.adaptation.source_share import Beta, ShareDraws, knot_passes
from ppl_med.inference.adaptation.statistic_sites import (
    SHARE,
    BatchStatistics,
    StatisticSites,
    as_sites,
    norm_layers,
)
from ppl_med.inference.adapted import adapted
from ppl_med.inference.batches import check_iterable, check_seed, choose_device
from ppl_med.inference.guides.ensemble import Ensemble, members_of
from ppl_med.inference.guides.kept_draws import KeptDraws
from ppl_med.inference.prediction.case_noise import derive_seed
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.programs.sites import Program


class AdaptedDraws(KeptDraws):
    """The draws of a guide, with statistics of BatchNorm beside them."""

    def __init__(self, sampler: PosteriorSampler, statistics: list[dict[str, Tensor]]) -> None:
        super().__init__({name: torch.stack([one[name] for one in statistics])
                          for name in statistics[0]})  # fmt: skip
        self.sampler, self.guide = sampler, sampler.guide  # the guide moves along

    def draw(self, draw: int) -> dict[str, Tensor]:
        """Values of all sites in one draw."""
        with poutine.block():  # the guide runs; what it proposes is proposed here once
            weights = self.sampler.draw(draw)
        return weights | super().draw(draw)


class AdaptedMembers(Ensemble):
    """Adapted pairs, one a chain."""

    def __init__(self, pairs: list[tuple[nn.Module, Any]]) -> None:
        nn.Module.__init__(self)
        self.models = nn.ModuleList(model for model, _ in pairs)
        self.guides = nn.ModuleList(guide for _, guide in pairs)


def joined(pairs: list[tuple[nn.Module, Any]]) -> tuple[nn.Module, Any]:
    """The one pair, or the first model with all pairs as its guide, as ``predict`` takes them."""
    return pairs[0] if len(pairs) == 1 else (pairs[0][0], AdaptedMembers(pairs))


def adapt(
    model: Program,
    guide: Program,
    batches: Any,
    *,
    statistics: Literal["domain", "batch"] = "domain",
    prior_cases: float | None = None,
    source_share: Beta | None = None,
    evidence: float = 0.0,
    views: Sequence[Augmentation] | None = None,
    keys: Mapping[str, str] | None = None,
    draws: int = 32,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[nn.Module, Any]:
    """Adapt BatchNorm to the images of a domain; labels are not read.

    Args:
        model: The model, trained.
        guide: Its guide, trained, or an ``Ensemble``. Both stay as they are.
        batches: Images of the domain, as in ``predict``.
        statistics: "domain", of all its images together; or "batch", of every batch by itself, for
            which a prediction depends on the cases beside it.
        prior_cases: How many cases the source statistics count as, beside those of the domain.
        source_share: Beta prior of the share of the source, drawn for every posterior draw; it
            stands in the tree as ``source_share``.
        evidence: Observations that a case counts as, in the posterior of the source share by how
            predictions of the views of a case agree (see `source_share`); 0 draws it from its
            prior.
        views: For it, augmentations under which the truth is the same, with the identity;
            ``symmetries(2)`` by default, the image and its mirror image.
        keys: As in ``predict``.
        draws: Draws per chain, as many as will be predicted with.
        seed: Seed of all draws: that of ``predict`` without adaptation, for the same weights.
        device: Where to run; a GPU where there is one, by default.
        progress: Show a bar with ETA.

    Returns:
        Model and guide for ``predict(model, guide, ..., draws=draws)``: draw s has the weights of
        draw s of the guide under ``seed``, and statistics of its own; with "batch", the guide is
        the one given.

    Raises:
        ValueError: The model has no BatchNorm or runs a layer of it twice, the guide proposes
            latents of every case, the domain has one case, evidence is asked of a model without a
            site of classes, or arguments exclude each other.
    """
    choice("statistics", statistics, ("domain", "batch"))
    draws, seed = whole("draws", draws), check_seed(seed)
    if prior_cases is not None and source_share is not None:
        reject("prior_cases", "left out where source_share is given", prior_cases)
    if prior_cases is not None:
        prior_cases = positive("prior_cases", prior_cases)
    if source_share is not None:
        if not isinstance(source_share, tuple) or len(source_share) != 2:
            reject("source_share", "a Beta prior such as Beta(1, 1)", source_share)
        source_share = Beta(*(positive("source_share", one) for one in source_share))
    evidence = finite("evidence", evidence, 0)
    if evidence and source_share is None:
        reject("evidence", "0 without source_share, whose posterior it is for", evidence)
    pairs = members_of(model, guide)
    for one, _ in pairs:
        norm_layers(one)
    if statistics == "batch":
        if prior_cases is not None or source_share is not None:
            reject("statistics", '"domain" to be pooled with the source', statistics)
        found: list[tuple[nn.Module, Any]] = [(BatchStatistics(one), own) for one, own in pairs]
        return joined(found)
    batches = adapted(batches, keys)
    number = check_iterable(batches)
    chosen = choose_device(device)
    adapted_pairs: list[tuple[nn.Module, Any]] = []
    seen = checked_views(views)
    passes = len(norm_layers(pairs[0][0]))
    passes += knot_passes(passes) if evidence else 0
    total = len(pairs) * draws * passes * number
    with tqdm(total=total, desc="adapt", unit="batch", disable=not progress) as bar:
        for chain, pair in enumerate(pairs):
            domain = Domain(pair, batches, chosen, seed, chain, bar)
            shares = source_share and ShareDraws(domain, source_share, evidence, seen)
            values = []
            for draw in range(draws):
                random = np.random.default_rng(derive_seed(seed, chain, draw))
                share = 0.0
                if prior_cases is not None:
                    share = prior_cases / (prior_cases + domain.num_cases)
                if shares is not None:
                    share = shares.share(draw, random)
                sites = as_sites(domain.statistics(draw, share))
                values.append(sites if shares is None else sites | {SHARE: torch.tensor(share)})
            own = StatisticSites(pair[0], source_share=source_share)
            adapted_pairs.append((own, AdaptedDraws(domain.sampler, values)))
    return joined(adapted_pairs)
