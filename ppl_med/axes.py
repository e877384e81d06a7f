"""Names of axes, written at the sample site and read by ``predict``."""

from collections.abc import Sequence
from typing import Any

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
)

SAMPLES = ("chain", "draw")
"""Axes of draws: independently trained members, and draws of each."""

SPACE = {2: ("row", "col"), 3: ("depth", "row", "col")}
"""Names of the spatial axes of images and of volumes."""


def dims(*names: str, stored: bool = True, proposed: bool = True) -> Any:
    """Name a site's event axes: ``pyro.sample("z", ..., infer=dims("latent"))``.

    Args:
        names: One name an event axis, outermost first. The usual ones are in ``AXES``.
        stored: Whether ``predict`` keeps the values of a latent site per case; False for noise
            that nobody reads.
        proposed: Whether a guide must propose a latent site; False for noise of a likelihood, which
            then follows the model's prior under every guide.

    Returns:
        What ``pyro.sample`` takes as ``infer``.
    """
    infer: dict[str, Any] = {"event_dims": list(names)}
    if not stored:
        infer["stored"] = False
    if not proposed:
        infer["proposed"] = False
    return infer


def site_dims(trace: Any, site: str) -> list[str]:
    """Return a site's axis names: its plates, outermost first, then its event axes.

    Event axes without a name are called ``<site>_dim_<i>``, which is ArviZ's convention.

    Args:
        trace: A ``poutine.Trace`` of the program.
        site: Name of a sample site in it.
    """
    node: Any = trace.nodes[site]
    plates = {frame.dim or 0: frame.name for frame in node["cond_indep_stack"]}
    named: Sequence[str] = (node["infer"] or {}).get("event_dims", ())
    num_event = len(node["fn"].event_shape)
    event = list(named) or [f"{site}_dim_{index}" for index in range(num_event)]
    if len(event) != num_event:
        raise ValueError(
            f"site {site!r} has {num_event} event axes but infer=dims(...) names {list(named)}; "
            "name every event axis, or none"
        )
    return [plates[dim] for dim in sorted(plates)] + event
