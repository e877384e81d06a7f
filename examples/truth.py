"""Guides against the truth: what do cheap posteriors make of what NUTS finds?

Four small problems whose posterior NUTS samples in minutes (a curve with a gap, two half-moons,
logistic regression on digits, a small CNN on malaria cells). Every guide learns from the same cases
with the same model and prior, and its functions are compared with those of NUTS at test images: the
mean, the spread, the joint law, the coverage of its intervals. The first chains of NUTS against its
last are the floor, draws of the prior the ceiling. Writes to the output folder

    posterior-<problem>-<guide>-<seed>.nc   functions at the test images
    scores.nc, table.md                     scores of every guide, by seed
    heat_map.png                            guides times problems
"""

import tyro
from truth.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options)
    from truth.run import main  # after the options, so that --help is quick

    main(options)
