"""Figures of clustered maps: what is drawn is what the Dataset holds."""

import numpy as np
import pytest
import xarray as xr

from ppl_med.analysis import spray
from ppl_med.plots import spray as plots

SIDE = 8
TRUTH = np.repeat([0, 1, 2], [18, 14, 12])
NAMES = np.array(["well", "ill"])[(TRUTH == 1).astype(int)]


def draws() -> xr.DataArray:
    """Three draws of maps with the heat of group g on row g; the last draw moves case 0."""
    rng = np.random.default_rng(0)
    maps = 0.05 * rng.normal(size=(3, len(TRUTH), SIDE, SIDE))
    for draw in range(3):
        maps[draw, np.arange(len(TRUTH)), TRUTH] += 1
    maps[2, 0, :2] = maps[2, 0, 1::-1]
    ids = [f"case-{index}" for index in range(len(TRUTH))]
    return xr.DataArray(maps, {"case": ids}, ["draw", "case", "row", "col"])


def found() -> xr.Dataset:
    return spray.clusters(draws(), NAMES, embedding="spectral")


def test_eigenvalues_and_their_gap() -> None:
    result = found()
    figure = plots.eigenvalues(result)
    (ax,) = figure.axes
    (dots,) = [line for line in ax.lines if line.get_label() == "mean map"]
    np.testing.assert_array_equal(dots.get_data(), [result.number, result.eigenvalue])
    assert len([line for line in ax.lines if line.get_label() == "draw"]) == 3
    (span,) = ax.patches
    assert (span.get_extents().x0, span.get_extents().x1) == pytest.approx(
        tuple(ax.transData.transform([[3, 0], [4, 0]])[:, 0])
    )
    assert "3 clusters by the eigengap; 3 at 0" in ax.get_title(loc="left")
    assert "100% of the draws" in ax.get_title(loc="left")
    figure.draw_without_rendering()
    assert "chosen" in plots.eigenvalues(
        spray.clusters(draws(), num_clusters=2, embedding="spectral")
    ).axes[0].get_title(loc="left")


def test_embedding_colours_clusters_and_marks_the_unsure() -> None:
    result = found()
    figure = plots.embedding(result, NAMES.tolist())
    (ax,) = figure.axes
    points = np.concatenate([np.asarray(item.get_offsets()) for item in ax.collections])
    assert {tuple(point) for point in points} == set(map(tuple, result.coordinate.values))
    faces = [np.asarray(item.get_facecolor()).reshape(-1, 4)[0, :3] for item in ax.collections]
    hollow = [item for item, face in zip(ax.collections, faces, strict=True) if (face == 1).all()]
    np.testing.assert_array_equal(hollow[0].get_offsets(), result.coordinate[:1])
    assert len(hollow) == 1
    text = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert text[0].startswith("Cluster 0: 18 cases · 100% well (p = ")
    assert text[-2:] == ["ill", "well"]
    figure.draw_without_rendering()
    with pytest.raises(ValueError, match="label must be one value per case"):
        plots.embedding(result, ["ill"])
    with pytest.raises(ValueError, match="label has 44 values"):
        plots.embedding(result, list(range(44)))


@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet_shows_the_most_typical_first(channels: int) -> None:
    result, maps = found(), draws()
    images = np.random.default_rng(1).uniform(size=(len(TRUTH), channels, SIDE, SIDE))
    figure = plots.contact_sheet(images, maps, result, 1, num=7, label=NAMES.tolist())
    shown = [ax for ax in figure.axes if ax.images and ax.get_visible()]
    assert len(shown) == 2 * 8
    unit = spray.unit_maps(maps)
    own = np.flatnonzero(result.cluster == 1)
    alike = (unit[own] * result.mean_map[1]).sum(("row", "col"))
    best = own[np.argsort(-alike.values)[:7]]
    titles = [ax.get_title() for ax in shown if ax.get_title()]
    assert titles == ["mean of all", *(f"case-{index}\nill" for index in best)]
    heats = [ax.images[0] for ax in shown if not ax.get_title()]
    np.testing.assert_allclose(np.asarray(heats[0].get_array()), result.mean_map[1])
    np.testing.assert_allclose(np.asarray(heats[1].get_array()), unit[best[0]])
    assert len({image.get_clim() for image in heats}) == 1
    assert figure.get_suptitle().startswith("Cluster 1: 14 cases · 100% ill")
    figure.draw_without_rendering()


def test_unit_maps_have_length_1_or_0() -> None:
    maps = draws()
    maps[:, 0] = 0
    length = np.sqrt((spray.unit_maps(maps) ** 2).sum(("row", "col")))
    np.testing.assert_allclose(length, (np.arange(len(TRUTH)) > 0).astype(float))


def test_bad_input_says_what_is_wrong() -> None:
    result, maps = found(), draws()
    images = np.zeros((len(TRUTH), 1, SIDE, SIDE))
    with pytest.raises(ValueError, match="group must be a whole number"):
        plots.contact_sheet(images, maps, result, 3)
    with pytest.raises(ValueError, match="num must be a whole number"):
        plots.contact_sheet(images, maps, result, 0, num=0)
    with pytest.raises(ValueError, match="maps have sizes"):
        plots.contact_sheet(images, maps.isel(case=slice(20)), result, 0)
    with pytest.raises(ValueError, match="maps have a depth"):
        plots.contact_sheet(images, maps.expand_dims(depth=2), result, 0)
    with pytest.raises(ValueError, match="label must be one value per case"):
        plots.contact_sheet(images, maps, result, 0, label=["ill"])
    with pytest.raises(ValueError, match="clusters has no num_pieces"):
        plots.eigenvalues(result.drop_vars("num_pieces"))
