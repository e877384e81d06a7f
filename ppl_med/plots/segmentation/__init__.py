"""Figures of ambiguous segmentation: each takes named arrays and returns a matplotlib ``Figure``.

samples          image, every grader's mask, coherent samples, mean and spread: one row per case
overlay          prediction, probability and entropy on the image of a case
write_overlays   the same as PNG files, one per case
uncertainty_maps entropy, or variance of masks, per pixel and its two parts
latent_plane     masks decoded over two latent dimensions
latent_draws     latent codes of the draws, coloured by what they show
mode_bars        true and sampled frequencies of known modes, and flip rates
ged_by_samples   generalised energy distance against the number of samples
area_intervals   credible intervals of areas against the graders'
size_intervals   intervals over the true size, of several methods side by side
pixel_reliability  share of graders against the probability of a pixel
"""

from ppl_med.plots.segmentation.energy import ged_by_samples
from ppl_med.plots.segmentation.entropy_maps import uncertainty_maps
from ppl_med.plots.segmentation.latent import latent_draws, latent_plane
from ppl_med.plots.segmentation.modes import mode_bars
from ppl_med.plots.segmentation.overlays import overlay, write_overlays
from ppl_med.plots.segmentation.reliability import pixel_reliability
from ppl_med.plots.segmentation.sample_rows import samples
from ppl_med.plots.segmentation.sizes import area_intervals, size_intervals

__all__ = [
    "area_intervals",
    "ged_by_samples",
    "latent_draws",
    "latent_plane",
    "mode_bars",
    "overlay",
    "pixel_reliability",
    "samples",
    "size_intervals",
    "uncertainty_maps",
    "write_overlays",
]
