"""Spacings of files that are read together: one for all of them, unless other ones are meant."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ppl_med.checks import choice, is_finite, reject
from ppl_med.data.readers.folders import some_of

Spacing = tuple[float, ...] | Literal["same", "mixed"]
_ALIKE = 0.01  # share by which two spacings may differ and count as one


def check_spacing(spacing: Any, num_axes: int | None = None) -> None:
    """Raise unless a spacing is "same", "mixed" or mm above 0, one for each axis."""
    if isinstance(spacing, str):
        choice("spacing", spacing, ("same", "mixed"))
    elif not isinstance(spacing, tuple) or not all(is_finite(mm) and mm > 0 for mm in spacing):
        reject("spacing", '"same", "mixed" or a tuple of mm above 0', spacing)
    elif num_axes is not None and len(spacing) != num_axes:
        reject("spacing", f"{num_axes} numbers, one for each of size", spacing)


def check_spacings(spacings: Mapping[Any, Any], spacing: Spacing, what: str = "files") -> None:
    """Compare what files say of their spacing, before any is read.

    Args:
        spacings: mm along each axis, by file; NaN where it does not say.
        spacing: "same" wants one, and square pixels of films; a tuple that each says its own.
        what: What the keys are.

    Raises:
        ValueError: They do not. It counts the files and names the first.
    """
    total = len(spacings)
    known = {key: one for key, one in spacings.items() if not np.isnan(one).any()}
    unknown = [key for key in spacings if key not in known]
    if isinstance(spacing, tuple):
        if unknown:
            raise ValueError(
                f"{some_of(unknown, total, what)} do not say their spacing, so that spacing="
                f"{spacing} cannot be made"
            )
        return
    if spacing == "mixed" or not known:
        return
    usual = np.median(list(known.values()), axis=0)
    if len(usual) == 2:  # slices of volumes are thick, which nets of volumes learn
        oblong = [
            f"{key} {one[0]:g} x {one[1]:g} mm"
            for key, one in known.items()
            if not np.isclose(one[0], one[1], rtol=_ALIKE)
        ]
        if oblong:
            raise ValueError(
                f"pixels are not square in {some_of(oblong, total, what)}; give spacing=(row, col) "
                'in mm, to which all are resampled, or spacing="mixed" to take them as they are'
            )
    shown = "(" + ", ".join(f"{value:.3g}" for value in usual) + ")"
    others = [
        f"{key} ({', '.join(f'{value:.3g}' for value in one)})"
        for key, one in known.items()
        if not np.allclose(one, usual, rtol=_ALIKE)
    ]
    if others:
        raise ValueError(
            f"spacing differs from the median, {shown} mm, in {some_of(others, total, what)}; give "
            f'spacing={shown}, to which all are resampled, or spacing="mixed" to keep them'
        )
    if unknown:
        raise ValueError(
            f"{some_of(unknown, total, what)} do not say their spacing and the others do; give "
            'spacing="mixed" to take them as they are'
        )
