"""Boxes on chest films: do intervals, noise and both variances hold what they say?

On phantoms everything is known: where opacities are, with what probability a reader marks one, and
by how much readers' edges scatter. Ensembles of a small detector (RetinaNet-like, noise on every
edge) are trained on 50, 200 and 800 films of three readers each, and single nets on 800 films of
one reader. Asked is whether

    edges        lie in their 90 % intervals as often as that
    aleatoric    standard deviations are the generator's, and those that readers' boxes show
    p(exists)    is the probability that a reader marks an opacity
    epistemic    variances fall with films, and rise on anatomy that was not seen
    pairs        of nodules at a distance are split and joined as `detection.objects` says
    the bias     of the classes needs a prior of its own

A baseline that never sees the film is scored beside: every training set of boxes is a draw. With
--source cxr_lesions the ensemble is trained on with 29 real films, and shown on 5.

Writes to the output folder, for every net, member-<films>-<seed>-<number>.pt, the trees
posterior-<films>-<seed>-<part>.nc, and scores.json, tables.md and four pictures.
Finished nets are kept with --resume.
"""

import tyro
from chest_boxes.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from chest_boxes.run import main  # after the options, so that --help is quick

    main(options)
