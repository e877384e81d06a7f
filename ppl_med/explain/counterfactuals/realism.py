"""How likely an image of a class is under a generative model: a bound on its log-density.

    log 1/K sum over k of p(image, class, z_k) / q(z_k | image, class),    z_k ~ q

It is at most log p(image, class) on average and rises with K (Burda, Grosse and Salakhutdinov,
"Importance weighted autoencoders", ICLR 2016). Its unit is nats, with the intensities' unit in the
density: compare images of one size and scale under one model, nothing else. A decoder's mean lacks
the noise of its pixels, so it can score higher than any real image.
"""

import math
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_med.programs import protocol
from ppl_med.programs.isolation import preserved_state
from ppl_med.programs.sites import is_local, sample_sites


@torch.no_grad()
def log_density(
    model: Any,
    guide: Any,
    image: Tensor,
    label: Tensor,
    *,
    particles: int = 64,
    seed: int = 0,
    batch_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """The importance-weighted bound on log p(image, label) of every case.

    Args:
        model: A generative program of images, whose observed site ``label`` has the density of
            image and label together, such as ``ppl_med.models.ConditionalVAE``.
        guide: Its guide, q(z | image, label).
        image: Dims (case, channel, ...).
        label: Classes, dims (case,).
        particles: The number K of draws.
        seed: Seed of the draws; the generators of the process and the modes stay as they were.
        batch_size: Largest number of images times particles in one pass.

    Returns:
        Bound and its Monte Carlo standard error (by the delta method), both (case,), in nats.

    Raises:
        ValueError: If a site belongs to no case, such as random weights.
    """
    rows = max(1, batch_size // particles)
    with preserved_state(model, guide), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        model.eval(), guide.eval()
        parts = [
            _log_weights(model, guide, x.repeat_interleave(particles, 0), k)
            for x, k in zip(
                image.split(rows),
                label.repeat_interleave(particles).split(rows * particles),
                strict=True,
            )
        ]
    log_weights = torch.cat(parts).double().view(len(image), particles)
    bound = log_weights.logsumexp(1) - math.log(particles)
    relative = (log_weights - bound[:, None]).exp()
    return bound, relative.std(1, correction=0) / math.sqrt(particles)


def class_probabilities(
    model: Any, guide: Any, image: Tensor, *, particles: int = 64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The probability of every class given the image, p(class | image), by Bayes' rule.

    What `predict` stores of such a model is given a code from the prior. Here the bounds of
    `log_density` stand for log p(image, class); arguments are those of it.

    Returns:
        Probabilities and their Monte Carlo standard errors (by the delta method), dims (case,
        class), float64. The errors do not see what q(z | image, class) misses, as of images unlike
        those of the training: a bound is then too low, and the class too improbable.

    Raises:
        ValueError: As `log_density`, or the model does not name its classes (``coords``).
    """
    classes = protocol.coords(model).get("class")
    if not classes:
        raise ValueError("model must name its classes in coords['class'], as ConditionalVAE does")
    labels = [torch.full((len(image),), k, device=image.device) for k in range(len(classes))]
    found = [
        log_density(model, guide, image, label, particles=particles, seed=seed + k)
        for k, label in enumerate(labels)
    ]
    bounds, errors = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
    probs = bounds.softmax(1)
    shares = (probs * errors).square()
    spread = shares.sum(1, keepdim=True)
    variance = probs.square() * (spread + (1 - 2 * probs) * errors.square())
    return probs, variance.clamp(min=0).sqrt()


def _log_weights(model: Any, guide: Any, image: Tensor, label: Tensor) -> Tensor:
    proposed = poutine.trace(guide).get_trace(image, label)
    trace = poutine.trace(poutine.replay(model, trace=proposed)).get_trace(image, label)
    total = torch.zeros(len(image), dtype=torch.float64, device=image.device)
    for sign, sites in ((1, sample_sites(trace)), (-1, sample_sites(proposed))):
        for name, node in sites.items():
            if not is_local(node):
                raise ValueError(
                    f"realism needs a generative model whose sites all belong to a case, and "
                    f"{name!r} does not; give one with deterministic networks, such as "
                    "ConditionalVAE"
                )
            log_prob = node["fn"].log_prob(node["value"])
            total += sign * log_prob.reshape(len(image), -1).sum(1).double()
    return total
