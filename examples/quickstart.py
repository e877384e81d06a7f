"""Quickstart: is the cell parasitized, how sure is the network, and where did it look?

Generates blood-smear cells with a known parasite mask and known label noise, trains a Bayesian CNN
by variational inference on all, a quarter and a sixteenth of them, and writes to the output folder:

    posterior.nc   the posterior as an xarray.DataTree in ArviZ's schema
    report.html    pictures: certain and uncertain cases, where the network looked, calibration
"""

import tyro
from quickstart.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from quickstart.run import main  # after the options, so that --help is quick

    main(options)
