"""Raters who differ, weights that are not known: does a diffusion of masks tell the two apart?

Small images show a disc that raters outline narrowly or widely, with a probability that the image
tells. So the variance of the area between raters is known for every image. A categorical diffusion
learns from a fixed number of images, each annotated once by one rater; masks with the same weights
differ as raters do, and means over masks of different weights differ as far as the weights are not
known. With more images the second should fall, and the first stay where the truth is.

Needs no data. Writes to the output folder

    checkpoint-<guide>-<images>-<seed>.pt          trained networks
    posterior-<split>-<guide>-<images>-<seed>.nc   sampled masks of the images to compare on
    scores.nc, table.md                            both parts of the variance, errors, differences
    parts.png                                      the parts against the number of images
"""

import tyro
from rater_variance.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from rater_variance.run import main  # after the options, so that --help is quick

    main(options)
