"""Street scenes with 32 right answers of known probability: which model finds them, how often?

Five classes flip to a second version of themselves, each over the whole image or not at all, by
coins that the image does not show (Kohl et al., NeurIPS 2018, section 4.2). So every image has 2^5
masks whose probabilities are known, and a model can be tested: does it find every mode, as
often as it should, and do all pixels of a class flip together?

On CamVid, with --data, or on synthetic scenes, with --scenes: these need no data, are new in every
step, and hold all five classes in every image. Writes to the output folder, for every model,
checkpoint.pt, history.nc and posterior-<split>.zarr, and for all of them

    table.md, table.nc   divergences of the frequencies from the truth, flip rates, GED²
    report.html          pictures: sampled masks, the 32 modes, the latent plane

Finished models are kept with --resume.
"""

import tyro
from street_modes.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from street_modes.run import main  # after the options, so that --help is quick

    main(options)
