"""Model and guide."""

from functools import partial
from typing import Any

import torch
from dense_uncertainty.variants import draws_each, dropout
from monai.networks.nets.unet import UNet

from hippocampus.options import Options
from ppl_med.data.readers import hippocampus
from ppl_med.inference import Ensemble, MeanFieldNormal, PointEstimate
from ppl_med.models import BayesianSegmenter

SIZE = (40, 56, 32)  # voxels; holds every outlined voxel of the set and can be halved thrice


def build(options: Options) -> tuple[BayesianSegmenter, Any]:
    """Model and guide."""
    torch.manual_seed(options.seed)
    net = UNet(
        spatial_dims=3, in_channels=1, out_channels=len(hippocampus.CLASS_NAMES),
        channels=options.channels, strides=(2,) * (len(options.channels) - 1), num_res_units=1,
    )  # fmt: skip
    model = BayesianSegmenter(net, hippocampus.CLASS_NAMES, spatial_dims=3)
    if options.guide == "dropout":
        return model, dropout(model, options.dropout)
    if options.guide == "ensemble":
        parts = partial(dropout, rate=options.dropout)
        return model, Ensemble(model, parts, options.members, seed=options.seed)
    if options.guide == "mean_field":
        return model, MeanFieldNormal(model, init_scale=0.05, estimator="shared")
    return model, PointEstimate(model)


def draws_of(options: Options) -> int:
    """Draws of every member, or of the one net."""
    several = options.guide == "ensemble"
    return draws_each(options.draws, options.members) if several else options.draws
