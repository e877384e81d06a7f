"""Counterfactuals: what would have to be different in an image for another class.

Three answers, each judged over posterior draws:

    minimal_perturbation    min ‖x' - x‖₂ with x' of the other class: a smallest change exists for
                            any net, and it is an adversarial attack. High frequencies and a low
                            realism say so.
    sparse_additive         min M(x - a) + penalty ‖a‖₁ in a box: what few pixels must lose
    latent_counterfactual   decode(z, other class): the image that a conditional VAE gives the code
                            of this case, as the other class

A posterior has no one decision to flip. The search follows the posterior predictive probability,
the mean over draws; the result says in how many draws the class flips.

References: Szegedy et al., "Intriguing properties of neural networks", ICLR 2014, and Goodfellow,
Shlens and Szegedy, ICLR 2015 (minimal changes are attacks); Dhurandhar et al., "Explanations based
on the missing", NeurIPS 2018 (sparse additive changes); Joshi et al., "Towards realistic individual
recourse", 2019, and Antorán et al., "Getting a CLUE", ICLR 2021 (search in the latent of a VAE).
"""

from ppl_med.explain.counterfactuals.image_search import minimal_perturbation, sparse_additive
from ppl_med.explain.counterfactuals.latent_search import latent_counterfactual
from ppl_med.explain.counterfactuals.realism import class_probabilities

__all__ = [
    "class_probabilities",
    "latent_counterfactual",
    "minimal_perturbation",
    "sparse_additive",
]
