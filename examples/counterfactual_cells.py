"""Counterfactuals: what would have to differ for the network to see a healthy cell, or a parasite?

Three answers, or five, on malaria cells (or chest X-rays), under a Bayesian network:

    minimal perturbation   the smallest change of the image; an adversarial attack
    sparse additive map    a change of few pixels
    latent                 the image of the other class that a conditional VAE generates from the
                           case's code
    diffusion              with --method diffusion: the image through a diffusion chain and back,
                           pulled towards the other class; beside it the nearest training image

Each is judged by posterior draws that the search did not see (does the class flip?), by another
network, of another architecture and seed (does it flip there too, or was it an attack on one net?),
and by another VAE, trained apart from the one that generates (how likely is the image, in nats?).
The explained cases are test cases that the network gets right. Finished training is not repeated
with --resume.
"""

import tyro
from counterfactuals.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from counterfactuals.run import main  # after the options, so that --help is quick

    main(options)
