"""Names of axes, written at the sample site and read by ``predict``."""

from collections.abc import Sequence
from typing import Any

from ppl_med.moved import renamed

AXES = (
    "chain",
    "draw",
    "case",
    "grader",
    "channel",
    "class",
    "depth",
    "row",
    "col",
    "latent",
    "step",
    "augmentation",
    "box",
    "edge",
    "anchor",
    "finding",
)

SAMPLES = ("chain", "draw")
"""Axes of draws: independently trained members, and draws of each."""

WEIGHTS = "weights"
"""Coordinate along draw, where several draws share their weights: which draw of them it has."""

AUGMENTATION = "augmentation"
"""Axis of augmentations, under each of which all draws were predicted."""

EDGES = ("x_min", "y_min", "x_max", "y_max")
"""Along the axis edge: the sides of a box, in pixels from the corner of the image."""

SPACE = {2: ("row", "col"), 3: ("depth", "row", "col")}
"""Names of the spatial axes of images and of volumes."""


def dims(
    *names: str,
    stored: bool = True,
    proposed: bool = True,
    needs: str | None = None,
    classes: Sequence[str] | None = None,
) -> Any:
    """Name a site's event axes: ``pyro.sample("z", ..., infer=dims("latent"))``.

    Args:
        names: One name an event axis, outermost first. The usual ones are in ``AXES``.
        stored: Whether ``predict`` keeps the values of a latent site per case; False for noise
            that nobody reads.
        proposed: Whether a guide must propose a latent site; False for noise of a likelihood, which
            then follows the model's prior under every guide.
        needs: The guide without which a latent site means nothing, as errors name it, such as
            "Noising(model.noising)"; the site cannot be left to the prior then.
        classes: Names of the classes of an observed site of a program of one's own, as a model
            gives them by ``coords = {"class": [...]}``: they name the class axis of ``probs``.

    Returns:
        What ``pyro.sample`` takes as ``infer``.
    """
    infer: dict[str, Any] = {"event_dims": list(names)}
    if not stored:
        infer["stored"] = False
    if not proposed:
        infer["proposed"] = False
    if needs is not None:
        infer["needs"] = needs
    if classes is not None:
        infer["classes"] = list(classes)
    return infer


__getattr__ = renamed(__name__, {"site_dims": "ppl_med.programs.sites.site_dims"})
