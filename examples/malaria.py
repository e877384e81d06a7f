"""Malaria study: Bayesian against frequentist nets on cell images, with less and less data.

Reproduces the table of Laumann's MedSpace talk on the NIH malaria cells: accuracy per class, mean
epistemic and aleatoric variance at 100 %, 50 % and 25 % of the training data, and adds dropout,
a 5-member ensemble, NLL, ECE, the KL of the posterior, and the paired difference to the frequentist
net. All figures are of the patient-disjoint test part; recipes were chosen on the validation part,
with the same effort for every method.

The mean-field net starts at the frequentist net of its fraction and seed, takes natural-gradient
steps and learns the prior's scales: its posterior is at the optimum of the ELBO, not where training
stopped. Frequentist nets that it needs are trained if they are not there.

Every run (guide, fraction, seed) gets a folder with its checkpoint and posterior. Finished runs are
not repeated with --resume, so the study can be stopped and spread over machines.
"""

import tyro
from malaria.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from malaria.run import main  # after the options, so that --help is quick

    main(options)
