"""Scores of a model that generates the image, such as ``ImageVAE``. Larger: more unlike training.

    reconstruction               mean over draws of -log p(x | z_s)                           nats
    reconstruction_mahalanobis   mean over draws of |x - x_s| / a + d(z_s) / b
    likelihood                   -log p(x), p(x) = 1/S sum p(x | z_s) p(z_s) / q(z_s | x)     nats
    input_complexity             -log p(x) - length of a lossless code of the image           nats
    waic                         -(mean - variance) over chains of log p(x)                   nats

with z_s drawn from the guide, q(z | x), x_s its decoded image and d the Mahalanobis distance from
the codes of training, draw by draw; a and b are the standard deviations of |x - x_s| and of d over
training cases, so that neither needs a case from elsewhere. `background_ratio` compares two trees.

**A density is no familiarity.** log p(x) and log p(x | z) are *higher* for images that are simpler
than those of training: smooth, dark or empty ones (Nalisnick et al., ICLR 2019, arXiv:1810.09136).
"likelihood" and "reconstruction" then rank cases from elsewhere as more familiar than training
(AUROC below 0.5); the others were proposed against that, each with its own blind spots. The
estimate of log p(x) from S draws is too low on average, the more so the worse the guide knows the
image.

Sources: Denouden et al., arXiv:1812.02765; Burda et al., ICLR 2016, arXiv:1509.00519; Serra et al.,
ICLR 2020, arXiv:1909.11480; Choi, Jang and Alemi, arXiv:1810.01392; Ren et al., NeurIPS 2019,
arXiv:1906.02845.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image
from scipy.special import logsumexp

from ppl_med.analysis.ood.confidence import Found
from ppl_med.analysis.ood.features import Fitted, square_length, whitening
from ppl_med.analysis.ood.found import as_found
from ppl_med.analysis.ood.outputs import Outputs, open_outputs, table
from ppl_med.analysis.tree import case_coords, check_cases, find_group
from ppl_med.axes import SAMPLES, SPACE

_LEVELS = 255  # of an 8-bit picture


@dataclass(frozen=True)
class Generative:
    """How a score learns from training cases, if it does, and how it scores.

    Args:
        score: From what was learnt and the outputs to the score (case), and that of every draw
            (sample, case).
        reads: What it reads of the outputs, beside the log-likelihood.
        fit: From the outputs of training cases to what was learnt; None where nothing is.
    """

    score: Callable[[Mapping[str, np.ndarray], Outputs], Found]
    reads: Callable[[Outputs], list[xr.DataArray]] = lambda outputs: []
    fit: Callable[[Outputs], Fitted] | None = None


def score_runs(name: str, learnt: Mapping[str, np.ndarray], outputs: Outputs) -> Iterator[Found]:
    """Score runs of the cases, in their order, that fit the memory limit."""
    known = SCORES[name]
    for part in outputs.blocks(outputs.generated(), *known.reads(outputs)):
        yield known.score(learnt, part)


def reconstruction(learnt: Mapping[str, np.ndarray], outputs: Outputs) -> Found:
    """Minus the log-likelihood of the image given its code."""
    single = -_stacked(outputs, outputs.generated())
    return single.mean(0), single


def likelihood(learnt: Mapping[str, np.ndarray], outputs: Outputs) -> Found:
    """Minus the log-density of the image, by importance weights; that of a draw is its weight."""
    log_weight = log_weights(outputs)
    return -_log_mean(log_weight), -log_weight


def waic(learnt: Mapping[str, np.ndarray], outputs: Outputs) -> Found:
    """Minus the mean less the variance over chains, members of an ensemble, of the log-density.

    Raises:
        ValueError: There is one chain.
    """
    chains, draws = outputs.samples
    if chains < 2:
        raise ValueError(
            f"waic needs models that differ, and the tree has 1 chain of {draws} draws: predict "
            "with an Ensemble of two members or more."
        )
    log_weight = log_weights(outputs).reshape(chains, draws, -1)
    by_chain = np.stack([_log_mean(one) for one in log_weight])
    return by_chain.var(0, ddof=1) - by_chain.mean(0), -np.repeat(by_chain, draws, 0)


def fit_complexity(outputs: Outputs) -> Fitted:
    """The range of the intensities, which 8 bits divide."""
    image = _images(outputs)
    low, high = float(image.min()), float(image.max())
    if not low < high:
        raise ValueError("the images of the reference are constant; their codes have no length.")
    return {"low": np.asarray(low), "high": np.asarray(high)}


def input_complexity(learnt: Mapping[str, np.ndarray], outputs: Outputs) -> Found:
    """Minus the log-density less the length of the image as a PNG of 8 bits a value."""
    low, high = float(learnt["low"]), float(learnt["high"])
    scaled = np.clip((_images(outputs).values - low) / (high - low), 0, 1)
    pictures = (_LEVELS * scaled).round().astype(np.uint8)
    length = np.log(2) * np.array([png_bits(one) for one in pictures])
    log_weight = log_weights(outputs)
    return -_log_mean(log_weight) - length, -log_weight - length


def png_bits(image: NDArray[np.uint8]) -> int:
    """Bits of an image (channel, [depth,] row, col) as PNG: one colour picture, or one a plane."""
    if image.ndim == 3 and len(image) == 3:
        planes = [image.transpose(1, 2, 0)]
    else:
        planes = list(image.reshape(-1, *image.shape[-2:]))
    total = 0
    for plane in planes:
        file = io.BytesIO()
        Image.fromarray(plane).save(file, "PNG", optimize=True)
        total += 8 * file.tell()
    return total


def fit_reconstruction(outputs: Outputs) -> Fitted:
    """Of every draw the mean of the codes, their whitening, and both standard deviations."""
    found: dict[str, list[np.ndarray]] = {"centre": [], "whitening": [], "scale": []}
    error, codes = outputs.error(), outputs.codes()
    for place in outputs.places():
        code = _code(codes, place)
        centre = code.mean(0)
        matrix = whitening(code, centre)
        parts = table(error, place), _distance(code, centre, matrix)
        scale = np.array([one.std() for one in parts])
        if not (scale > 0).all():
            raise ValueError(
                "reconstruction_mahalanobis: the errors or the codes of the training cases are all "
                "the same; pass more cases, of a model that has learnt."
            )
        for name, value in (("centre", centre), ("whitening", matrix), ("scale", scale)):
            found[name].append(value)
    return {name: np.stack(values) for name, values in found.items()}


def reconstruction_mahalanobis(learnt: Mapping[str, np.ndarray], outputs: Outputs) -> Found:
    """Length of what the code leaves of the image, and the distance of the code, each scaled."""
    error, codes = outputs.error().compute(), [one.compute() for one in outputs.codes()]
    found = []
    for row, place in enumerate(outputs.places()):
        of_error, of_code = learnt["scale"][row]
        code = _code(codes, place)
        distance = _distance(code, learnt["centre"][row], learnt["whitening"][row])
        found.append(table(error, place) / of_error + distance / of_code)
    single = np.stack(found)
    return single.mean(0), single


def _code(codes: Sequence[xr.DataArray], place: tuple[int, int]) -> np.ndarray:
    """Codes (case, unit) of one draw."""
    kept = [table(one, place) for one in codes]
    return np.concatenate([one.reshape(len(one), -1) for one in kept], axis=1)


def _distance(code: np.ndarray, centre: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Mahalanobis distance (case)."""
    return np.sqrt(square_length(code - centre, matrix))


def log_weights(outputs: Outputs) -> np.ndarray:
    """Log p(x, z_s) - log q(z_s | x) of every draw (sample, case), nats."""
    total = _stacked(outputs, outputs.generated())
    for sign, group in ((1, "log_prior"), (-1, "log_guide")):
        for density in find_group(outputs.tree, group).data_vars.values():
            total += sign * _stacked(outputs, density.transpose(*SAMPLES, "case"))
    return total


def background_ratio(tree: xr.DataTree, background: xr.DataTree) -> xr.Dataset:
    """How much better a background model explains an image than the model of interest does.

        score = log p_background(x) - log p(x)                                      nats

    What both know, such as smoothness and darkness, cancels. The background model is a second
    ``ImageVAE``, trained on images of which 10 to 30 % of the pixels are replaced by random ones
    (``ppl_med.data.RandomPixels``); the share is to be chosen without images from elsewhere.

    Args:
        tree: The tree of `predict` of the model, on some images.
        background: That of the background model, on the same images, unchanged.

    Returns:
        Dataset as of `score`, without p-value: `with_pvalues` adds it from the scores of held-out
        cases. Draws (chain, draw) are those of ``tree``, with all draws of the background.

    Raises:
        TypeError, ValueError: No trees of generative models, other cases, or twice the same model.

    Source: Ren et al., NeurIPS 2019, arXiv:1906.02845.
    """
    own, other = open_outputs(tree), open_outputs(background)
    check_cases(own.array, other.array, "tree", "background")
    names = [str(one.tree.attrs.get("parameters_sha256", "")) for one in (own, other)]
    if names[0] and names[0] == names[1]:
        raise ValueError(
            "tree and background are of the same model, whose ratio is 1; predict the second by a "
            "model that was trained on perturbed images."
        )
    log_weight, log_background = log_weights(own), _log_mean(log_weights(other))
    coords = case_coords(own.array, *SAMPLES)
    single = (log_background - log_weight).reshape(*own.samples, -1)
    per_draw = xr.DataArray(single, coords, (*SAMPLES, "case"))
    return as_found(
        log_background - _log_mean(log_weight),
        per_draw,
        score="background_ratio",
        model=names[0],
        background=names[1],
    )


def _stacked(outputs: Outputs, array: xr.DataArray) -> np.ndarray:
    """An array (chain, draw, case) as (sample, case), checked."""
    array = array.compute()
    return np.stack([table(array, place) for place in outputs.places()])


def _log_mean(log_weight: np.ndarray) -> np.ndarray:
    """Log of the mean over samples, (case)."""
    mean: np.ndarray = logsumexp(log_weight, axis=0) - np.log(len(log_weight))
    return mean


def _images(outputs: Outputs) -> xr.DataArray:
    """The observed images (case, channel, [depth,] row, col), not yet read."""
    image = outputs.observed()
    if image.ndim not in (4, 5):
        raise ValueError(
            f"input_complexity needs images (case, channel, [depth,] row, col), and observed "
            f"{image.name} has dimensions {image.dims}."
        )
    return image.transpose("case", "channel", *SPACE[3], ..., missing_dims="ignore")


SCORES: dict[str, Generative] = {
    "reconstruction": Generative(reconstruction),
    "reconstruction_mahalanobis": Generative(
        reconstruction_mahalanobis,
        lambda outputs: [outputs.error(), *outputs.codes()],
        fit_reconstruction,
    ),
    "likelihood": Generative(likelihood),
    "input_complexity": Generative(
        input_complexity, lambda outputs: [outputs.observed()], fit_complexity
    ),
    "waic": Generative(waic),
}
