"""p(Alzheimer) of a brain scan with both uncertainties, and where in the brain the evidence lies.

Trains a 3D net whose log-odds are a sum of contributions of places (``AdditiveCNN``), with random
weights, and asks of every posterior draw what it says and where it looks. Scans:

    phantom       brains whose hippocampi shrink by a known severity, labels by a known law
    hippocampus   real hippocampi of the Decathlon with an atrophy planted by the same law
    --data        one's own folder instead: OASIS-1, ADNI or BIDS, see ppl_med.data.load_brains

Beside the net: a linear model of one number, the region's volume over the head's, which is the bar;
Bayes' rule, which knows the severity; and what a split by slice makes of labels that mean nothing.
Writes to the output folder

    table.md, figures.json            accuracies, localisation, leakage
    <source>-<seed>/posterior.nc      draws of the test cases
    <source>-<seed>/maps/*.nii.gz     mean and sd of the map, in register with the scan
    <source>-planes.png               three planes of a scan and its map
"""

import tyro
from brain.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from brain.run import main  # after the options, so that --help is quick

    main(options)
