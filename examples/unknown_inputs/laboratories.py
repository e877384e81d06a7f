"""White blood cells of another laboratory: how much of what is lost does BatchNorm win back?

Small U-Nets with BatchNorm learn nucleus and cytoplasm on pictures of one laboratory and read those
of others without being trained again:

    pale, dark, faint     the test pictures of the first laboratory, as if stained, lit, focused and
                          magnified elsewhere; chosen on the validation part
    second                those of the second laboratory, where --second-site says where they are

as they are ("source"), and with BatchNorm adapted to the pictures, labels unseen: statistics of the
batch; of the whole laboratory ("domain"); of both laboratories pooled, by as many cases of the
source as of the other, by a share drawn from a uniform prior, by one drawn from its posterior;
scales and shifts by entropy (TENT) without brakes and with them, and by agreement of mirror images.

Lost is the Dice between the same pictures before and after they were made worse; for the second
laboratory, between it and the first. "mean mask" is what stands where in the training masks.

Writes to the output folder

    <guide>-<seed>/           checkpoint.pt, history.nc, posterior.nc, figures-<laboratory>.nc
    table.md, table.nc        Dice, share recovered, NLL and calibration
    dice.png, tent.png, shares.png
"""

import tyro
from laboratories.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from laboratories.run import main  # after the options, so that --help is quick

    main(options)
