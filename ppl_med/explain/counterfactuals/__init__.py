"""Counterfactuals: what would have to be different in an image for another class.

Five answers, each judged over posterior draws:

    minimal_perturbation    min ‖x' - x‖₂ with x' of the other class: a smallest change exists for
                            any net, and it is an adversarial attack. High frequencies and a low
                            realism say so.
    sparse_additive         min M(x - a) + penalty ‖a‖₁ in a box: what few pixels must lose
    latent_counterfactual   decode(z, other class): the image that a conditional VAE gives the code
                            of this case, as the other class
    diffusion_counterfactual  the image of the case's code in a diffusion chain, pulled towards the
                            other class on the way
    nearest_case            a training image of the other class: the trivial baseline

``second_opinion`` asks a network trained apart whether the class flips there too.

A posterior has no one decision to flip. The search follows the posterior predictive probability,
the mean over draws; the result says in how many draws the class flips.

References: Szegedy et al., "Intriguing properties of neural networks", ICLR 2014, and Goodfellow,
Shlens and Szegedy, ICLR 2015 (minimal changes are attacks); Dhurandhar et al., "Explanations based
on the missing", NeurIPS 2018 (sparse additive changes); Joshi et al., "Towards realistic individual
recourse", 2019, and Antorán et al., "Getting a CLUE", ICLR 2021 (search in the latent of a VAE);
Jeanneret, Simon and Jurie, "Diffusion models for counterfactual explanations", ACCV 2022 (a guided
chain); Sanchez and Tsaftaris, "Diffusion causal models", CLeaR 2022 (from the image's own code).
"""

from ppl_med.explain.counterfactuals.copied_cases import nearest_case
from ppl_med.explain.counterfactuals.diffusion_search import diffusion_counterfactual
from ppl_med.explain.counterfactuals.image_search import minimal_perturbation, sparse_additive
from ppl_med.explain.counterfactuals.latent_search import latent_counterfactual
from ppl_med.explain.counterfactuals.realism import class_probabilities
from ppl_med.explain.counterfactuals.second_judge import second_opinion

__all__ = [
    "class_probabilities",
    "diffusion_counterfactual",
    "latent_counterfactual",
    "minimal_perturbation",
    "nearest_case",
    "second_opinion",
    "sparse_additive",
]
