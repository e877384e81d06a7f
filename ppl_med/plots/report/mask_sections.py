"""Sections of a tree of masks: the masks of some cases, sizes with intervals, scores."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import xlogy

from ppl_med.analysis import scoring, segmentation
from ppl_med.analysis.statistics.weight_draws import PairSums
from ppl_med.analysis.tree import Draws, class_site, find_group, open_draws
from ppl_med.plots.palette import UNKNOWN, class_colors, tinted
from ppl_med.plots.report.class_sections import RESAMPLES
from ppl_med.plots.report.images import CaseImages
from ppl_med.plots.report.page import Section, data_table, paragraph, part, picture
from ppl_med.plots.report.viewer import Panel, choose_slices, show_panels
from ppl_med.plots.segmentation import area_intervals

SHOWN, SHOWN_VOLUMES = 5, 3
_MOST_GRADERS, _MOST_FIGURES = 4, 2


def mask_draws(tree: xr.DataTree) -> tuple[Draws, str]:
    """Return the draws of masks of a tree, from ``probs`` or else from drawn masks, and which."""
    kind = "mode" if "probs" in find_group(tree, "posterior") else "draw"
    draws = open_draws(tree, kind)
    if draws.num_classes is None:
        highest = max(int(draws.masks(block).max()) for block in draws.blocks())
        draws = Draws(draws.array, max(2, highest + 1), ())
    return draws, kind


def annotations(tree: xr.DataTree) -> xr.DataArray | None:
    """Return the observed masks (case, [grader,] ...), not yet read, if there are any."""
    name = class_site(tree, "observed_data", ("mask",))
    return None if name is None else find_group(tree, "observed_data")[name]


def show_masks(tree: xr.DataTree, images: CaseImages | None) -> Section:
    """Return the section of masks: the least certain cases, one in the middle, the most certain."""
    draws, _ = mask_draws(tree)
    entropy = _case_entropy(draws)
    order = np.argsort(-entropy, kind="stable")
    volumes = len(draws.space) > 2
    number = min(SHOWN_VOLUMES if volumes else SHOWN, len(order))
    places = [*range(number - 1), len(order) - 1] if number > 1 else [0]
    names = draws.names or tuple(str(index) for index in range(draws.num_classes or 2))
    truth = annotations(tree)
    cases = _ids(draws.array)
    body = paragraph(_HOW_TO_READ)
    chosen = order[places].tolist()
    read = [_one_case(draws, index, 2 if volumes else 3) for index in chosen]
    top = max(float(one.spread.max()) for one in read) or 1.0  # of all maps, so that they compare
    for place, index in enumerate(chosen):
        title = f"case {cases[index]}"
        kind = "least certain" if place < number - 1 or number == 1 else "most certain"
        text = f"Case {cases[index]}: mean entropy {entropy[index]:.3g} nats per pixel ({kind})"
        body += part("heading", text)
        graded = None if truth is None else truth.isel(case=index).load()
        shown = None if images is None else _fitted(images.picture(index), draws, cases[index])
        ratio = _ratio(tree, index, draws)
        one = read[place]
        body += _viewer(f"case-{place}", title, draws, one, top, names, graded, shown, ratio)
    rows = [[case, float(value)] for case, value in zip(cases, entropy, strict=True)]
    body += part("heading", "Uncertainty of every case")
    rows = [rows[index] for index in order]
    body += data_table("Entropy per case", ("case", "mean entropy [nats per pixel]"), rows, most=8)
    return Section("masks", "Masks", body, sliders=volumes)


def sizes(tree: xr.DataTree, level: float = 0.9) -> str:
    """Return sizes of structures with credible intervals, as figures and a table."""
    draws, kind = mask_draws(tree)
    names = list(range(1, draws.num_classes or 2))
    found = segmentation.sizes(tree, samples=kind, classes=names, level=level)
    unit = str(found["mean"].attrs.get("units", "pixels"))
    what = "Volumes" if len(draws.space) > 2 else "Areas"
    reached = 100 * float(found.attrs.get("attained_level", level))
    body = paragraph(f"Intervals of {reached:.3g} %.")
    largest = np.argsort(-found["mean"].mean("case").values)[:_MOST_FIGURES]
    for name in found["class"].values[largest]:
        alt = f"Credible intervals of the size of {name} [{unit}], one per case, sorted by median."
        body += picture(area_intervals(found, str(name)), alt)
    graders = "grader_size" in found
    shown = unit.replace("^2", "²").replace("^3", "³")
    size = f"mean [{shown}]"
    head = ["case", "structure", size, f"{size} lower", f"{size} upper"]
    head += [f"graders' mean [{shown}]"] if graders else []
    rows = []
    for index, case in enumerate(_ids(draws.array)):
        for number, name in enumerate(found["class"].values):
            one = found.isel({"case": index, "class": number})
            row = [case, str(name), *(float(one[key]) for key in ("mean", "lower", "upper"))]
            rows.append([*row, float(one["grader_size"].mean())] if graders else row)
    return body + data_table(what, head, rows, most=12)


def overlap_scores(tree: xr.DataTree, group: str | None) -> tuple[xr.Dataset, str]:
    """Return scores of masks against one annotation, and Dice and IoU per class as HTML."""
    scores = scoring.score(tree)
    found = scoring.overlap(tree, group=group, resamples=RESAMPLES)
    for name in ("dice_mean", "iou_mean"):
        for suffix in ("", "_se", "_lower", "_upper", "_per_draw"):
            if f"{name}{suffix}" in found:
                scores[f"{name}{suffix}"] = found[f"{name}{suffix}"].drop_vars(
                    "class", errors="ignore"
                )
    rows = []
    for index, name in enumerate(found["class"].values):
        one = found.isel({"class": index})
        keys = [f"{score}_per_class{end}" for score in ("dice", "iou")
                for end in ("", "_lower", "_upper")]  # fmt: skip
        rows.append([str(name), *(float(one[key]) for key in keys)])
    head = ("structure", "Dice", "Dice lower", "Dice upper", "IoU", "IoU lower", "IoU upper")
    unit = found.attrs.get("unit", "case")
    body = paragraph(
        f"Figures are taken case by case and averaged; intervals of 95 % are over {unit}s."
    )
    return scores, body + data_table("Dice and IoU per structure", head, rows)


def grader_scores(tree: xr.DataTree) -> tuple[xr.Dataset, str]:
    """Return how the draws agree with several graders, in distribution and mask by mask."""
    kind = mask_draws(tree)[1]
    classes = None if kind == "mode" else list(range(1, mask_draws(tree)[0].num_classes or 2))
    options = {"samples": kind, "classes": classes}
    energy = segmentation.ged(tree, **options)  # type: ignore[arg-type]
    scores, rows = xr.Dataset(), []
    parts = (
        (energy, "biased", "squared energy distance as published, floor included"),
        (energy, "unbiased", "the same without its floor"),
        (energy, "floor", "what draws as good as the graders would reach"),
        (segmentation.dice_max(tree, **options), "dice_max",  # type: ignore[arg-type]
         "Dice of a draw with the grader it is nearest to"),
        (segmentation.d_max(tree, **options), "d_max",  # type: ignore[arg-type]
         "Dice of a grader with the draw it is nearest to"),
        (segmentation.diversity(tree, **options), "diversity",  # type: ignore[arg-type]
         "distance between two draws, 1 - IoU"),
    )  # fmt: skip
    for found, name, meaning in parts:
        if f"{name}_mean" in found:
            value, error = float(found[f"{name}_mean"]), float(found[f"{name}_se"])
            label = f"energy distance, {name}" if found is energy else name.replace("_", " ")
            rows.append([label, value, error, meaning])
    scores["ged"], scores["ged_se"] = energy["biased_mean"], energy["biased_se"]
    body = paragraph(
        "Where graders disagree a single best mask is not enough: the draws should disagree in the "
        "same way and as often."
    )
    head = ("figure", "mean over cases", "standard error", "meaning")
    return scores, body + data_table("Agreement with the graders", head, rows)


_HOW_TO_READ = (
    "A draw is one whole mask that the model holds possible, the most probable mask is that of the "
    "mean of all draws, and the two maps show where the draws leave the class open."
)


class _Read(NamedTuple):
    """What is shown of the draws of a case."""

    mean: NDArray[np.float64]  # (class, ...)
    spread: NDArray[np.float64]  # sd over draws
    masks: list[NDArray]  # of some draws


def _fitted(image: NDArray[np.float64], draws: Draws, case: str) -> NDArray[np.float64]:
    """The image as large as the masks, which may be filled up behind a small volume."""
    shape = image.shape[:-1]
    lacking = [most - own for own, most in zip(shape, draws.shape, strict=False)]
    volume = len(shape) == len(draws.shape) == 3
    if len(shape) != len(draws.shape) or min(lacking) < 0 or (max(lacking) > 0 and not volume):
        raise ValueError(
            f"images of case {case} are {shape}, its masks {draws.shape}; pass the images that "
            "were predicted"
        )
    return np.pad(image, [*((0, more) for more in lacking), (0, 0)])


def _viewer(
    identity: str,
    title: str,
    draws: Draws,
    read: _Read,
    top: float,
    names: Sequence[str],
    graded: xr.DataArray | None,
    image: NDArray[np.float64] | None,
    ratio: float | None,
) -> str:
    volume = len(draws.space) > 2
    mean, spread, masks = read
    entropy = -xlogy(mean, mean).sum(0)
    graders = _graders(graded, draws)
    seen = mean.argmax(0) > 0
    for _, mask in graders:
        seen = seen | (mask > 0)
    if volume:
        chosen = choose_slices(seen.any(tuple(range(1, seen.ndim))))
        titles = [f"Slice {one + 1} of {draws.shape[0]}" for one in chosen]
    else:
        chosen, titles = np.array([0]), [""]
    plain = len(names) == 2 or names[0].lower() in ("background", "0", "void", "unlabelled")
    tones: list[str | None] = list(class_colors(list(names)))
    if plain:
        tones[0] = None

    def cut(array: NDArray) -> NDArray:
        return array[chosen] if volume else array[None]

    base = None if image is None else cut(image)

    def colored(mask: NDArray) -> NDArray[np.float64]:
        one = cut(mask)
        under = np.ones((*one.shape, 1)) if base is None else base
        return np.stack([tinted(*pair, tones, 1.0 if base is None else 0.5)
                         for pair in zip(under, one, strict=True)])  # fmt: skip

    panels = [] if base is None else [Panel("image", base)]
    panels += [Panel(name, colored(mask)) for name, mask in graders]
    panels.append(Panel("most probable mask", colored(mean.argmax(0))))
    panels.append(Panel("entropy", cut(entropy), "viridis", float(np.log(len(names)))))
    panels.append(Panel("sd over draws", cut(spread), "Blues", top))
    panels += [Panel(f"draw {number + 1}", colored(mask)) for number, mask in enumerate(masks)]
    legend = [(tone, name) for tone, name in zip(tones, names, strict=True) if tone is not None]
    if any((mask < 0).any() for _, mask in graders):
        grey = "#{:02x}{:02x}{:02x}".format(*(round(255 * one) for one in UNKNOWN))
        legend.append((grey, "not annotated"))
    units = {"entropy": "nats", "sd over draws": "probability"}
    return show_panels(identity, title, panels, titles, ratio=ratio, legend=legend, units=units)


def _pieces(draws: Draws, block: slice) -> Iterator[NDArray[np.float64]]:
    """Probabilities (case, class, pixel) of one draw after the other; of masks 0 and 1."""
    if "class" in draws.array.dims:
        yield from (piece.astype(np.float64) for piece in draws.probabilities(block))
        return
    masks = draws.masks(block)
    for sample in range(draws.num_samples):
        yield np.stack([masks[:, sample] == k for k in range(draws.num_classes or 2)], 1) * 1.0


def _case_entropy(draws: Draws) -> NDArray[np.float64]:
    """Mean entropy of the mean over draws, nats per pixel (case,)."""
    found = np.empty(draws.num_cases)
    for block in draws.blocks():
        mean = sum(_pieces(draws, block), np.zeros(1)) / draws.num_samples
        found[block] = -xlogy(mean, mean).sum(1).mean(1)
    return found


def _one_case(draws: Draws, index: int, number: int) -> _Read:
    """Mean and sd over the draws of a case, and some masks, at even steps through the draws."""
    steps = set(np.linspace(0, draws.num_samples - 1, number).round().astype(int).tolist())
    total, pairs, masks = np.zeros(1), PairSums(draws.functions), []
    for place, piece in enumerate(_pieces(draws, slice(index, index + 1))):
        total = total + piece[0]
        pairs.add(piece[0])
        if place in steps and draws.num_samples > 1:
            masks.append(piece[0].argmax(0).reshape(draws.shape))
    mean = total / draws.num_samples
    variance = pairs.variance()
    # With two classes the sd of one of them, with more the root of the sum over classes.
    spread = np.sqrt(variance[1] if len(variance) == 2 else variance.sum(0))
    return _Read(mean.reshape(-1, *draws.shape), spread.reshape(draws.shape), masks)


def _graders(graded: xr.DataArray | None, draws: Draws) -> list[tuple[str, NDArray]]:
    if graded is None:
        return []
    if "grader" not in graded.dims:
        return [("annotation", graded.transpose(*draws.space).values)]
    graded = graded.transpose("grader", *draws.space)
    known = [bool((mask >= 0).any()) for mask in graded.values]
    names = graded["grader"].values if "grader" in graded.coords else range(1, len(graded) + 1)
    found = [(f"grader {name}", mask) for name, mask, here in zip(
        names, graded.values, known, strict=True) if here]  # fmt: skip
    return found[:_MOST_GRADERS]


def _ratio(tree: xr.DataTree, index: int, draws: Draws) -> float | None:
    """Width over height of a picture in millimetres, where the tree knows the spacing."""
    spacing = find_group(tree, "constant_data").get("spacing")
    if spacing is None or spacing.dims[0] != "case" or spacing.sizes[spacing.dims[-1]] < 2:
        return None
    row, col = np.asarray(spacing.isel(case=index), np.float64)[-2:]
    height, width = draws.shape[-2] * row, draws.shape[-1] * col
    return float(width / height) if np.isfinite([height, width]).all() and height > 0 else None


def _ids(array: xr.DataArray) -> list[str]:
    if "case" not in array.coords:
        return [str(index) for index in range(array.sizes["case"])]
    return [str(one) for one in array["case"].values]
