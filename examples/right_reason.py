"""Right for the right reason: does a net look at the disease, or at a tag in the corner?

Planted: a tag is drawn into malaria cells and chest X-rays, nine times in ten where the class is 1
and once in ten where it is 0. Four nets are trained: on data whose tags are independent of the
class, on the confounded data, on these under a constraint on the attribution (the corner holds no
evidence), and on these with an adversary that must not find the tag in the features. Of each:

    how much relevance lies on the tag, by seven attribution methods, and whether it tells the net
    from the unconfounded one (AUROC over cases)
    balanced accuracy on test cases as collected, and on the same with tags exchanged
    what the tag does to the probability of class 1 in cases of class 0 (swap test)

Real: COVID-19 X-rays of several publications against X-rays without findings of the NIH. A net that
tells them apart is asked what the outer frame of the image, which shows no lung, does to it.

Settings were chosen on the validation part (--part val). Writes to the output folder, for every
data set, checkpoints, posteriors, relevance.png and maps-<net>.png, and for all of them

    table.md, table.nc       accuracies, effects of the tag, relevance on it by method
    source.nc, clusters.nc   of the two sources: effects of frames, clusters of attribution maps
    report.html              all of it, with pictures
"""

import tyro
from right_reason.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from right_reason.run import main  # after the options, so that --help is quick

    main(options)
