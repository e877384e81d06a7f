"""Reports on one small tree of every kind, written once and read by several tests."""

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import xarray as xr
from analysis_table import class_tree, depth_tree, finding_tree, grader_tree, number_tree

from ppl_med.plots.report import class_sections, mask_sections, report_tree

RESAMPLES = 20  # of intervals on the pages

HOSTILE = (
    "<script>steal()</script>",
    "</script><script>steal()</script>",
    "<img src=x onerror=steal()>",
    "\"><img src=x onerror='steal()'>",
    "' onmouseover='steal()",
    '" onfocus="steal()" autofocus="',
    "</title><script>steal()</script>",
    "</style><script>steal()</script>",
    "<svg onload=steal()>",
    "<svg><script>steal()</script></svg>",
    "<iframe srcdoc='<script>parent.steal()</script>'></iframe>",
    "<a href='javascript:steal()'>x</a>",
    "javascript:steal()",
    "data:text/html,<script>steal()</script>",
    "<meta http-equiv=refresh content='0;url=javascript:steal()'>",
    "<link rel=stylesheet href='data:text/css,*{color:red}'>",
    "<body onload=steal()>",
    "--><script>steal()</script><!--",
    "{{ 7 * 7 }}{% raw %}${steal()}`steal()`",
    "<details open ontoggle=steal()>\u2028<input autofocus onfocus=steal()>",
)


def volume_tree(names: tuple[str, ...] = ("x", "y", "z"), cases: int = 4) -> xr.DataTree:
    """Two chains of three draws of volumes, of three classes."""
    tree = class_tree(cases, "c", ("depth", "row", "col"))
    return renamed(tree, "class", names)


def drawn_masks() -> xr.DataTree:
    """Drawn masks and the masks of graders, without probabilities."""
    return grader_tree(6).filter(lambda node: node.name != "posterior")


def own_program() -> xr.DataTree:
    """Parameters of a program that has nothing to do with images."""
    draws = np.random.default_rng(0).normal(size=(2, 5, 3))
    return xr.DataTree.from_dict(
        {"/posterior": xr.Dataset({"slope": (("chain", "draw", "coefficient"), draws)})}
    )


def hostile_tree() -> xr.DataTree:
    """Volumes of which every name is hostile."""
    tree = renamed(volume_tree(HOSTILE[:3]), "case", HOSTILE[3:7])
    tree.attrs.update(dict(zip(HOSTILE[7:], HOSTILE[7:], strict=True)), model=HOSTILE[0])
    return tree


def renamed(tree: xr.DataTree, dim: str, names: tuple[str, ...]) -> xr.DataTree:
    """The tree with other names along a dim."""
    groups = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
    return xr.DataTree.from_dict(
        {
            path: one.assign_coords({dim: list(names)}) if dim in one.dims else one
            for path, one in groups.items()
        }
    )


def box_tree(number: int = 6) -> xr.DataTree:
    """Two draws of two boxes near the true ones; the second box has no true one in odd cases."""
    random = np.random.default_rng(1)
    true = np.tile([[0.0, 1, 4, 5], [4, 3, 8, 7]], (number, 1, 1))
    dims = ("chain", "draw", "case", "box")
    loc = true + 0.2 * random.normal(size=(1, 2, number, 2, 4))
    probs = np.broadcast_to([[0.7, 0.2], [0.1, 0.6]], (1, 2, number, 2, 2))
    label = np.tile([0, 1], (number, 1))
    label[1::2, 1] = -1
    edges = np.where(label[..., None] < 0, np.nan, true)
    coords = {"case": [f"film {i}" for i in range(number)], "class": ["nodule", "effusion"],
              "edge": ["x_min", "y_min", "x_max", "y_max"]}  # fmt: skip
    posterior = {
        "edge_loc": ((*dims, "edge"), loc),
        "edge_scale": ((*dims, "edge"), np.full(loc.shape, 0.3)),
        "box_probs": ((*dims[:3], "class", "box"), np.swapaxes(probs, -1, -2)),
    }
    observed = {"box_edge": (("case", "box", "edge"), edges), "box_label": (("case", "box"), label)}
    groups: dict[str, Any] = {"posterior": posterior, "observed_data": observed}
    made = {name: xr.Dataset(one).assign_coords(coords) for name, one in groups.items()}
    made["observed_data"] = made["observed_data"].drop_vars("class")
    return xr.DataTree.from_dict(made)


TREES = {
    "classes": class_tree,
    "boxes": box_tree,
    "findings": finding_tree,
    "masks": lambda: class_tree(6, "c", ("row", "col")),
    "graders": lambda: grader_tree(6),
    "drawn": drawn_masks,
    "volumes": volume_tree,
    "numbers": number_tree,
    "maps": lambda: depth_tree(5),
    "other": own_program,
    "hostile": hostile_tree,
}
_SPACE = {"masks": 2, "graders": 2, "volumes": 3, "maps": 2, "hostile": 3}


@functools.cache
def page(kind: str) -> Path:
    """Write the report on a tree of a kind, with images where it has cases."""
    tree = TREES[kind]()
    folder = Path(tempfile.mkdtemp(prefix="ppl_med_report"))
    images = None
    if kind not in ("drawn", "other"):
        cases = next(one.sizes["case"] for one in tree.subtree if "case" in one.sizes)
        size = (4,) * _SPACE[kind] if kind in _SPACE else (8, 8)
        images = np.random.default_rng(0).normal(size=(cases, 1, *size))
    with few_resamples():
        return report_tree(tree, folder / f"{kind}.html", images=images)


@contextlib.contextmanager
def few_resamples() -> Iterator[None]:
    """Spend less on the intervals of a page."""
    with (
        mock.patch.object(class_sections, "RESAMPLES", RESAMPLES),
        mock.patch.object(mask_sections, "RESAMPLES", RESAMPLES),
    ):
        yield
