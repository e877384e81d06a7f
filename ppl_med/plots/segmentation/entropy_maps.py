"""Maps of the uncertainty of a segmentation, and of the disagreement between draws."""

from collections.abc import Hashable, Sequence

import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_med.plots.inputs import case_positions, require_variables
from ppl_med.plots.pictures import map_rows, require_images
from ppl_med.plots.theme import heading

_PANELS = {
    "predictive_entropy": ("all uncertainty", "Greys"),
    "expected_entropy": ("inside each draw", "Oranges"),
    "mutual_information": ("between the draws", "Blues"),
}
_PARTS = {
    "between_all": ("all spread of masks", "Greys"),
    "between_raters": ("between raters", "Oranges"),
    "between_weights": ("between weights", "Blues"),
}


def uncertainty_maps(
    maps: xr.Dataset,
    images: ArrayLike,
    case: Hashable | Sequence[Hashable] | None = None,
) -> Figure:
    """Draw the uncertainty of every pixel and its two parts, on one scale.

    The entropy of the mean probabilities is the sum of the mean entropy of single draws (each draw
    is unsure of the pixel) and the mutual information (draws are sure, but disagree); in nats.

    Of several samples of each draw of the weights, the variance of masks is the sum of that between
    raters and that between weights, whose estimates below 0 are drawn as 0; probability squared,
    summed over the classes that were split.

    Args:
        maps: As ``ppl_med.analysis.segmentation.maps`` or ``rater_and_weight_variance`` returns it.
        images: (case, channel, row, col), 1 or 3 channels, any intensity unit; the cases of
            ``maps`` in their order.
        case: Ids of the cases to show; the first four by default.

    Returns:
        One row of panels per case.

    Raises:
        ValueError: A map is missing, maps of volumes, unknown cases, or images that do not fit.
    """
    split = isinstance(maps, xr.Dataset) and "between_all" in maps
    shown, source = (_PARTS, "rater_and_weight_variance") if split else (_PANELS, "maps")
    require_variables(maps, "maps", shown, f"ppl_med.analysis.segmentation.{source}")
    if split:
        maps = maps[list(shown)].sum("class", skipna=False)
    first = maps[next(iter(shown))]
    if set(first.dims) != {"case", "row", "col"}:
        raise ValueError(f"maps has dimensions {first.dims}; choose a slice of volumes first")
    pictures = require_images(images, maps.sizes["case"])
    chosen = case_positions(first, case)
    top = float(first.isel(case=chosen).max()) or 1.0
    panels = {
        title: (maps[name].transpose("case", "row", "col").to_numpy()[chosen], cmap, 0.0, top)
        for name, (title, cmap) in shown.items()
    }
    unit, title = ("probability²", "Variance of masks") if split else ("nats", "Entropy")
    figure = map_rows(pictures[chosen], first["case"].values[chosen].tolist(), panels, unit, 1.7)
    heading(figure, f"{title} per pixel")
    return figure
