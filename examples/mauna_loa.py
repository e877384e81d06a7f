"""Twenty years of carbon dioxide ahead: which band holds the truth?

The monthly record of Mauna Loa until 1981 trains nets and a Gaussian process; 1982 to 2001 is held
out. Plain dropout shows a line and the noise around it. Bayesian dropout, mean-field weights, a net
that gives its own noise and an ensemble show how far functions disagree. Noise (1/tau) and the
width of the prior are chosen for each method by the log density of 1977 to 1981, under nets that
saw the years before; the held-out years choose nothing.

Inputs are time alone, and in a second variant the season as well (sine and cosine of the year),
which a net cannot find out. Baselines: the last year again, with mean growth or without. Writes

    table.md                                 coverage, errors, widths over seeds
    mauna_loa.png                            every forecast of the first seed
    posterior-<method>-<inputs>-<seed>.nc    draws over the whole record
"""

import tyro
from mauna_loa.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from mauna_loa.run import main  # after the options, so that --help is quick

    main(options)
