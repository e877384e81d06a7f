"""What a VAE says of images that it has never seen: its density, and what was proposed instead.

VAEs are trained on digits (MNIST) or on chest X-rays of children (PneumoniaMNIST) and shown letters
(notMNIST) or red blood cells. Every score of ``ppl_med.analysis.ood`` that needs a generative model
is compared with two baselines without one: the Mahalanobis distance of mean and spread of the grey
levels, and the length of the image's PNG, shorter is more unlike.

Members of an ensemble give the density of several models ("waic"); all other scores are those of
its first member. Figures are of test cases; nothing was tuned on them or on images from elsewhere.
"""

import tyro
from vae_scores.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options)
    from vae_scores.run import main  # after the options, so that --help is quick

    main(options)
