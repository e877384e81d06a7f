"""What a counterfactual is measured by: the size, sparsity and frequencies of its change."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

HIGH_FREQUENCY = 0.25  # cycles per pixel: half of what a grid can hold along an axis
UNCHANGED = 0.01  # of a case's intensity range
ATTRS = {
    "image": ("intensity", "image"),
    "counterfactual": ("intensity", "counterfactual image"),
    "change": ("intensity", "counterfactual - image"),
    "present": ("1", "most probable class of the image, over all draws"),
    "target": ("1", "class asked for"),
    "reached": ("1", "whether the search reached its margin"),
    "flipped": ("1", "whether the most probable class of the draw becomes the target"),
    "already": ("1", "whether the target is the most probable class of the draw for the image"),
    "flip_probability": ("1", "share that flips of the draws that did not say the target already"),
    "flip_probability_se": ("1", "binomial standard error of the flip probability"),
    "probability": ("1", "probability of the target under each draw"),
    "log_odds": ("nat", "log-odds of the target against the strongest other class, over all draws"),
    "l1": ("intensity", "sum of absolute changes"),
    "l2": ("intensity", "Euclidean length of the change"),
    "linf": ("intensity", "largest absolute change"),
    "sparsity": ("1", "share of intensities changed by at most 1 % of the image's range"),
    "high_frequency_share": ("1", "share of the change's power above 0.25 cycles per pixel"),
    "realism": ("nat", "bound on log p(counterfactual, target)"),
    "realism_se": ("nat", "Monte Carlo standard error of the realism"),
    "realism_of_image": ("nat", "bound on log p(image, present class)"),
    "realism_of_image_se": ("nat", "Monte Carlo standard error of the image's realism"),
    "penalty": ("nat / intensity", "penalty on the L1 norm"),
    "stationarity": ("nat / intensity", "largest entry of the proximal gradient; 0 at the optimum"),
    "reconstruction": ("intensity", "what the chain makes of the image's code with no pull"),
    "round_trip": ("intensity", "root mean square of image - reconstruction"),
    "scale": ("1", "weight of the classifier against the diffusion"),
    "transferred": ("1", "whether the class becomes the target in another network too"),
    "second_log_odds": ("nat", "log-odds of the target under another network"),
    "reference": ("1", "position of the nearest training image"),
    "code": ("1", "code that the search starts from"),
    "counterfactual_code": ("1", "latent code of the counterfactual"),
}


def described(result: xr.Dataset) -> xr.Dataset:
    """Write units and long names."""
    for name in set(result.data_vars) & ATTRS.keys():
        units, long_name = ATTRS[str(name)]
        result[name].attrs.update(units=units, long_name=long_name)
    return result


def distances(change: Tensor, image: Tensor) -> dict[str, np.ndarray]:
    """Norms, sparsity and share of high frequencies of a change, each (case,)."""
    flat, own = change.flatten(1), image.flatten(1)
    span = (own.amax(1) - own.amin(1))[:, None]
    space = tuple(range(2, change.dim()))
    power = torch.fft.fftn(change.double(), dim=space).abs().square().sum(1).cpu().numpy()
    whole = power.reshape(len(power), -1).sum(1)
    high = (power * is_high(change.shape[2:])).reshape(len(power), -1).sum(1)
    return {
        "l1": as_numpy(flat.abs().sum(1)),
        "l2": as_numpy(flat.norm(dim=1)),
        "linf": as_numpy(flat.abs().amax(1)),
        "sparsity": as_numpy((flat.abs() <= UNCHANGED * span).double().mean(1)),
        "high_frequency_share": high / np.where(whole > 0, whole, np.nan),
    }


def is_high(shape: Sequence[int]) -> np.ndarray:
    """Which entries of a spectrum are high frequencies."""
    axes = np.meshgrid(*[np.fft.fftfreq(size) for size in shape], indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes)) > HIGH_FREQUENCY


def as_numpy(values: Tensor) -> np.ndarray:
    """Values without their graph, on the CPU."""
    return values.detach().cpu().numpy()
