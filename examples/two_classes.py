"""Two classes from first principles: how likely is the rare one at a point between them?

Points of two classes in the plane, R (2 %) and B (98 %), each normal. Three programs:

    maximum likelihood   one number p(R | x) by Bayes' rule from five estimates a class
    generative           the same program with priors: p(R | x) has a posterior, hence an interval;
                         by stochastic variational inference and by NUTS
    discriminative       a small Bayesian network from a point to its class, which knows nothing of
                         where points come from

The prior is conjugate, so the generative posterior is also drawn exactly, as the reference. The
example is the opening of a seminar on the probabilistic U-Net (see the README beside it).
"""

import tyro
from two_classes.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from two_classes.run import main  # after the options, so that --help is quick

    main(options)
