"""Images made worse by a named corruption of a severity from 0 to 5.

    worse = corrupt(image, "gaussian_noise", 3, seed=0)

Severity 0 is the identity, bit for bit; every table rises. Strengths of noise, compression,
intensities and pixelation are those of MedMNIST-C for chest X-rays where it has them; lengths are
shares of the image's size, so that they mean the same on small and on large images.

Source: Di Salvo, Doerrich and Ledig, MedMNIST-C, arXiv:2406.17536; Hendrycks and Dietterich, ICLR
2019, arXiv:1903.12261.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppl_med import checks
from ppl_med.data.random_streams import random_stream
from ppl_med.data.shifts import acquisition, blurring, intensities, noise

SEVEREST = 5


class Corruption(NamedTuple):
    """A corruption of one image (channel, [depth,] row, col) in [0, 1], and its strengths.

    Attributes:
        function: Of an image, a strength and a generator.
        strengths: At severities 1 to 5.
        kind: "noise", "blur", "intensity" or "acquisition".
    """

    function: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    strengths: tuple[float, float, float, float, float]
    kind: str


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(noise.gaussian, (0.04, 0.06, 0.08, 0.10, 0.12), "noise"),
    "speckle_noise": Corruption(noise.speckle, (0.05, 0.07, 0.10, 0.15, 0.20), "noise"),
    "shot_noise": Corruption(noise.shot, (1 / 300, 1 / 200, 1 / 150, 1 / 100, 1 / 80), "noise"),
    "salt_and_pepper": Corruption(
        noise.salt_and_pepper, (0.005, 0.01, 0.013, 0.017, 0.02), "noise"
    ),
    "rician_noise": Corruption(noise.rician, (0.03, 0.06, 0.09, 0.12, 0.15), "noise"),
    "gaussian_blur": Corruption(blurring.gaussian_blur, (0.01, 0.015, 0.02, 0.03, 0.04), "blur"),
    "motion_blur": Corruption(blurring.motion_blur, (0.04, 0.06, 0.09, 0.12, 0.16), "blur"),
    "pixelate": Corruption(blurring.pixelate, (0.2, 0.3, 0.4, 0.5, 0.6), "blur"),
    "jpeg": Corruption(blurring.jpeg, (0.5, 0.7, 0.85, 0.9, 0.93), "blur"),
    "brightness_up": Corruption(intensities.brightness, (0.1, 0.2, 0.3, 0.4, 0.5), "intensity"),
    "brightness_down": Corruption(
        intensities.brightness, (-0.1, -0.2, -0.3, -0.4, -0.5), "intensity"
    ),
    "contrast_up": Corruption(intensities.contrast, (0.1, 0.2, 0.3, 0.4, 0.6), "intensity"),
    "contrast_down": Corruption(intensities.contrast, (-0.1, -0.2, -0.3, -0.4, -0.6), "intensity"),
    "gamma_up": Corruption(intensities.gamma, (0.1, 0.2, 0.3, 0.4, 0.6), "intensity"),
    "gamma_down": Corruption(intensities.gamma, (-0.1, -0.2, -0.3, -0.4, -0.6), "intensity"),
    "stain": Corruption(intensities.stain, (0.05, 0.1, 0.15, 0.2, 0.3), "intensity"),
    "bias_field": Corruption(acquisition.bias_field, (0.1, 0.2, 0.3, 0.45, 0.6), "acquisition"),
    "gibbs": Corruption(acquisition.gibbs, (0.3, 0.45, 0.6, 0.7, 0.8), "acquisition"),
    "motion": Corruption(acquisition.motion, (0.01, 0.02, 0.03, 0.05, 0.08), "acquisition"),
    "ghosting": Corruption(acquisition.ghosting, (0.2, 0.35, 0.5, 0.65, 0.8), "acquisition"),
    "spike": Corruption(acquisition.spike, (0.03, 0.06, 0.09, 0.12, 0.16), "acquisition"),
}


def corrupt(
    image: Any,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    span: tuple[float, float] | None = None,
) -> NDArray[Any]:
    """Make images worse.

    What is random follows from the seed, the name and the position of the case, not from the
    severity: the same noise grows, and a case of a shorter array is corrupted as before.

    Args:
        image: (case, channel, [depth,] row, col), uint8 or floating; an array or a tensor on the
            CPU.
        name: A name of ``CORRUPTIONS``.
        severity: 0, the same image, to 5.
        seed: Seed of what is random.
        span: Darkest and brightest intensity possible, between which results are clipped; None
            for 0 and 255 of uint8, and for 0 and 1 of floating images, which must then lie
            between them. Standardised images are to be corrupted before.

    Returns:
        New images of the same shape and dtype.

    Raises:
        TypeError: Neither uint8 nor floating.
        ValueError: An unknown name, a severity out of range, images that are malformed, beyond
            ``span`` or, for "stain", not of three channels.
    """
    checks.choice("name", name, CORRUPTIONS)
    severity = checks.whole("severity", severity, least=0, most=SEVEREST)
    seed = checks.whole("seed", seed, least=0)
    values = np.asarray(image)
    low, high = _span(values, span)
    if severity == 0:
        return values.copy()
    corruption = CORRUPTIONS[name]
    strength = corruption.strengths[severity - 1]
    place = list(CORRUPTIONS).index(name)
    result = np.empty_like(values)
    for case, one in enumerate(values):
        scaled = (one.astype(np.float64) - low) / (high - low)
        worse = corruption.function(scaled, strength, random_stream(seed, place, case))
        worse = low + worse.clip(0.0, 1.0) * (high - low)
        result[case] = worse.round() if values.dtype == np.uint8 else worse
    return result


def _span(values: np.ndarray, span: tuple[float, float] | None) -> tuple[float, float]:
    """Check images; the intensities between which they lie."""
    if values.ndim not in (4, 5):
        raise ValueError(
            f"image has shape {values.shape}; expected (case, channel, [depth,] row, col)"
        )
    if values.dtype != np.uint8 and not np.issubdtype(values.dtype, np.floating):
        raise TypeError(
            f"image has dtype {values.dtype}; expected uint8 or floating: convert with "
            'image.astype("float32")'
        )
    if not values.size:
        raise ValueError(f"image has shape {values.shape}, which holds no pixel")
    if not np.isfinite(values).all():
        raise ValueError("image holds NaN or infinite pixels; replace them or drop the case")
    if span is None:
        span = (0.0, 255.0) if values.dtype == np.uint8 else (0.0, 1.0)
    low, high = (checks.finite("span", end) for end in span)
    if not low < high:
        raise ValueError(f"span must be (darkest, brightest), got {span}")
    if values.min() < low or values.max() > high:
        raise ValueError(
            f"image lies in [{values.min():g}, {values.max():g}], beyond span ({low:g}, {high:g}): "
            "give span=(darkest, brightest), and corrupt before you standardise"
        )
    return low, high
