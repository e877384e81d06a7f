"""The shape of the brain as a confounder: found by a swap of outlines, taken away by one outline.

At the site where a net is trained, nine of ten diseased subjects have the second of two outlines,
and one of ten healthy ones; at an honest site the outline says nothing. Two sources: axial slices
of brain phantoms (round and long brains of one volume, atrophy of the hippocampi) and real
hippocampi in 3D (real outlines, textures of other subjects warped into them, a planted loss of
intensity). Two Bayesian nets each:

    leaky         trained on the images of the site
    normalised    trained on the same images warped to one outline, and shown such images only

Of each: accuracy at the site and at the honest one, and the swap test: healthy subjects of the
first outline get the outlines of subjects of the second, beside the same subjects with outlines of
their own kind. Before any of that, how well the outline alone tells the labels apart.

Writes to the output folder

    table.md                     AUROC of the outline alone, accuracies, effects
    <source>.nc                  accuracies and effects, and in outlines-<source>.nc the AUROCs
    subjects-<source>.png        subjects before and after the swap
    effects-<source>.png         what the swap does to the probability
    <source>/                    checkpoints and posteriors
"""

import tyro
from brain_shape.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from brain_shape.run import main  # after the options, so that --help is quick

    main(options)
