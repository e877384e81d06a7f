"""Figures of segmentations: what is drawn is what the arrays hold, and bad input stops early."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from ppl_med.analysis import segmentation
from ppl_med.plots.palette import UNKNOWN, class_colors, painted
from ppl_med.plots.report import Section, paragraph, write_report
from ppl_med.plots.segmentation import (
    area_intervals,
    ged_by_samples,
    latent_draws,
    latent_plane,
    mode_bars,
    samples,
    uncertainty_maps,
)

CASES, CHAINS, DRAWS, ROWS, COLS = 5, 2, 3, 8, 10
IDS = [f"P{index}" for index in range(CASES)]
BINARY = ("background", "nodule")
SEVERAL = ("sky", "road", "car", "road 2")


def make_tree(classes: tuple[str, ...] = BINARY, graders: int = 3) -> xr.DataTree:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(CHAINS, DRAWS, CASES, len(classes), ROWS, COLS))
    probs = np.exp(logits) / np.exp(logits).sum(3, keepdims=True)
    mask = rng.integers(0, len(classes), (CASES, graders, ROWS, COLS))
    mask[1, 0] = 0
    mask[2, graders - 1] = -1
    posterior = xr.Dataset(
        {
            "probs": (("chain", "draw", "case", "class", "row", "col"), probs),
            "z": (
                ("chain", "draw", "case", "latent"),
                rng.normal(size=(CHAINS, DRAWS, CASES, 4)),
            ),
        },
        coords={"case": IDS, "class": list(classes)},
    )
    seen = xr.Dataset({"mask": (("case", "grader", "row", "col"), mask)}, coords={"case": IDS})
    return xr.DataTree.from_dict({"/posterior": posterior, "/observed_data": seen})


def make_images(channels: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(40, 300, (CASES, channels, ROWS, COLS))


def make_modes(modes: int = 4, switches: int = 2) -> xr.Dataset:
    rng = np.random.default_rng(2)
    return xr.Dataset(
        {
            "probability": ("mode", [0.1, 0.4, 0.3, 0.2]),
            "frequency": ("mode", [0.0, 0.5, 0.3, 0.2]),
            "frequency_se": ("mode", rng.uniform(0.01, 0.02, modes)),
            "total_variation": 0.1,
            "rate": ("switch", [0.4, 0.3]),
            "flip_mean": ("switch", [0.45, 0.2]),
            "flip_se": ("switch", [0.01, 0.02]),
        },
        coords={"mode": ["00", "10", "01", "11"], "switch": ["road", "car"][:switches]},
    )


def make_energy() -> xr.Dataset:
    return xr.Dataset(
        {
            "ged": (("model", "num_samples"), [[0.9, 0.5, 0.4], [0.8, 0.6, np.nan]]),
            "ged_se": (("model", "num_samples"), np.full((2, 3), 0.02)),
            "floor": ("num_samples", [0.6, 0.3, 0.2]),
        },
        coords={"model": ["prob_unet", "ensemble"], "num_samples": [1, 4, 16]},
    )


def make_plane(classes: int = 2) -> xr.DataArray:
    mask = np.random.default_rng(3).integers(0, classes, (2, 3, ROWS, COLS))
    axes = {"second": [-1.0, 1.0], "first": [-2.0, 0.0, 2.0]}
    return xr.DataArray(mask, axes, ("second", "first", "row", "col"))


def make_area(tree: xr.DataTree) -> xr.DataArray:
    found = segmentation.sizes(tree)["size"].isel({"class": 0}).rename("area")
    return found.assign_attrs(units="mm^2")


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text))


def pixels(ax: Axes) -> NDArray[np.float64]:
    return np.asarray(ax.images[0].get_array())


FIGURES: dict[str, Callable[[], Figure]] = {
    "samples": lambda: samples(make_tree(), make_images()),
    "samples of many classes": lambda: samples(make_tree(SEVERAL), make_images(3), "P3"),
    "uncertainty_maps": lambda: uncertainty_maps(segmentation.maps(make_tree()), make_images()),
    "latent_plane": lambda: latent_plane(make_plane(), BINARY, make_images()[0]),
    "latent_plane of many classes": lambda: latent_plane(make_plane(4), SEVERAL),
    "latent_draws": lambda: latent_draws(make_tree(), make_area(make_tree())),
    "mode_bars": lambda: mode_bars(make_modes(), make_modes()),
    "ged_by_samples": lambda: ged_by_samples(make_energy(), make_energy()),
    "area_intervals": lambda: area_intervals(segmentation.sizes(make_tree())),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_drawn_without_pyplot(name: str) -> None:
    from matplotlib import pyplot

    figure = FIGURES[name]()
    figure.draw_without_rendering()
    assert isinstance(figure, Figure)
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", ["latent_draws", "mode_bars", "ged_by_samples", "area_intervals"])
def test_every_y_axis_names_its_unit(name: str) -> None:
    axes = [ax for ax in FIGURES[name]().axes if ax.get_visible() and ax.get_subplotspec()]
    labels = [ax.get_ylabel() for ax in axes if ax.get_subplotspec().is_first_col()]  # type: ignore[union-attr]
    assert labels and all("[" in label and "]" in label for label in labels)


def test_plots_need_no_torch() -> None:
    code = "import sys, ppl_med.plots.segmentation\n" + (
        "print([m for m in ('torch', 'pyro', 'matplotlib.pyplot') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- samples


def grid(figure: Figure, columns: int) -> NDArray[np.object_]:
    return np.array(figure.axes[: columns * (len(figure.axes) // columns)]).reshape(-1, columns)


def test_samples_show_graders_draws_mean_and_sd() -> None:
    tree = make_tree()
    figure = samples(tree, make_images(), ["P4", "P2"], num_samples=4)
    axes = grid(figure, 1 + 3 + 4 + 2)
    foreground = tree["posterior"].to_dataset()["probs"].sel({"class": "nodule"}).isel(case=[4, 2])
    mean, sd = foreground.mean(("chain", "draw")), foreground.std(("chain", "draw"))
    for row in range(2):
        np.testing.assert_allclose(pixels(axes[row, -2]), mean.isel(case=row), rtol=1e-6)
        np.testing.assert_allclose(pixels(axes[row, -1]), sd.isel(case=row), rtol=1e-6)
    flat = tree["posterior/probs"].to_numpy().reshape(-1, *tree["posterior/probs"].shape[2:])
    for column, index in enumerate([0, 2, 3, 5], 4):  # even steps through six draws
        grey, shown = pixels(axes[0, 0]), pixels(axes[0, column])
        changed = (np.abs(shown - grey[..., None]) > 1e-9).any(-1)
        np.testing.assert_array_equal(changed, flat[index, 4].argmax(0) == 1)
    assert "sample 4" in texts(figure) and "6 draws" in texts(figure)


def test_samples_say_who_saw_nothing_and_who_did_not_look() -> None:
    axes = grid(samples(make_tree(), make_images(), ["P1", "P2"], num_samples=1), 7)
    assert [t.get_text() for t in axes[0, 1].texts] == ["empty"]
    assert [t.get_text() for t in axes[1, 3].texts] == ["not annotated"]
    assert not axes[0, 2].texts
    np.testing.assert_allclose(pixels(axes[1, 3]), np.broadcast_to(UNKNOWN, (ROWS, COLS, 3)))


def test_samples_of_many_classes_are_painted_in_their_colours() -> None:
    tree = make_tree(SEVERAL)
    figure = samples(tree, make_images(), "P0", num_samples=1, colors={"sky": "#abcdef"})
    axes = grid(figure, 1 + 3 + 1 + 2)
    mask = tree["posterior"].to_dataset()["probs"][0, 0, 0].argmax("class").to_numpy()
    tones = class_colors(SEVERAL, {"sky": "#abcdef"})
    np.testing.assert_allclose(pixels(axes[0, 4]), np.array([to_rgb(t) for t in tones])[mask])
    found = segmentation.maps(tree)
    np.testing.assert_allclose(pixels(axes[0, 5]), found["predictive_entropy"][0], rtol=1e-5)
    np.testing.assert_allclose(pixels(axes[0, 6]) ** 2, found["variance"][0], rtol=1e-5)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == list(SEVERAL)


def test_the_scale_of_the_spread_holds_the_largest_there_is() -> None:
    """Three draws of three classes, each sure of another: a variance of 1 over draws."""
    group = make_tree(SEVERAL[:3])["posterior"].to_dataset()[["probs"]]
    probs = group["probs"].isel(chain=[0], draw=slice(3))
    sure = np.zeros(probs.shape)
    for draw in range(3):
        sure[:, draw, :, draw] = 1
    tree = xr.DataTree.from_dict({"/posterior": xr.Dataset({"probs": probs.copy(data=sure)})})
    axes = grid(samples(tree, make_images(), "P0", num_samples=1), 1 + 1 + 2)
    shown = axes[0, 3].images[0]
    largest = np.asarray(shown.get_array()).max()
    assert shown.get_clim()[1] == pytest.approx(largest)
    assert largest == pytest.approx(1.0)


def test_samples_need_no_graders_and_take_one_annotation() -> None:
    tree = make_tree()
    bare = xr.DataTree.from_dict({"/posterior": tree["posterior"].to_dataset()})
    assert "grader" not in texts(samples(bare, make_images()))
    single = tree["observed_data"].to_dataset().isel(grader=0)
    one = xr.DataTree.from_dict(
        {"/posterior": tree["posterior"].to_dataset(), "/observed_data": single}
    )
    assert "annotation" in texts(samples(one, make_images()))


def test_a_class_and_its_second_version_share_a_hue() -> None:
    many = [f"class {k}" for k in range(30)]
    colors = class_colors([*many, "class 3 2"])
    assert len(set(colors)) == 31
    first, second = (np.array(to_rgb(colors[k])) for k in (3, 30))
    share = (second - first) / (1 - first)
    np.testing.assert_allclose(share, share[0], atol=0.02)  # mixed with white
    np.testing.assert_allclose(painted(np.array([[-1, 0]]), colors)[0, 0], UNKNOWN)


# --- the other figures


def test_uncertainty_maps_share_one_scale() -> None:
    found = segmentation.maps(make_tree())
    figure = uncertainty_maps(found, make_images(), ["P3"])
    shown = [ax for ax in figure.axes if ax.images][1:4]
    for ax, name in zip(
        shown, ("predictive_entropy", "expected_entropy", "mutual_information"), strict=True
    ):
        np.testing.assert_array_equal(pixels(ax), found[name].sel(case="P3"))
        assert ax.images[0].get_clim() == (
            0,
            float(found["predictive_entropy"].sel(case="P3").max()),
        )


def test_parts_of_raters_and_weights_are_drawn_by_the_same_figure() -> None:
    tree = make_tree()
    group = tree["posterior"].to_dataset().assign_coords(weights=("draw", [0] * DRAWS))
    tree["posterior"] = xr.DataTree(group)
    found = segmentation.rater_and_weight_variance(tree)
    figure = uncertainty_maps(found, make_images(), ["P3"])
    shown = [ax for ax in figure.axes if ax.images][1:4]
    top = float(found["between_all"].sel(case="P3").sum("class").max())
    for ax, name in zip(shown, ("all", "raters", "weights"), strict=True):
        expected = found[f"between_{name}"].sel(case="P3").sum("class")
        np.testing.assert_allclose(pixels(ax), expected, atol=1e-7)
        assert ax.images[0].get_clim() == (0, pytest.approx(top))
    assert "probability²" in texts(figure) and "between raters" in texts(figure)


def test_latent_plane_puts_every_mask_at_its_code() -> None:
    plane = make_plane(4)
    plane["first"].attrs["long_name"] = "z3"
    figure = latent_plane(plane, SEVERAL)
    ax = figure.axes[0]
    assert ax.get_xlabel() == "z3 [sd of the prior]"
    mosaic = pixels(ax)
    tones = class_colors(SEVERAL)
    across = zip(ax.get_xticks(), [-2.0, 0.0, 2.0], strict=True)
    down = zip(ax.get_yticks(), [1.0, -1.0], strict=True)
    for (x, first), (y, second) in itertools.product(across, down):
        top, left = int(y - ROWS / 2), int(x - COLS / 2)
        tile = mosaic[top : top + ROWS, left : left + COLS]
        mask = plane.sel(first=first, second=second).to_numpy()
        np.testing.assert_allclose(tile, painted(mask, tones))


def test_latent_draws_show_codes_and_figures() -> None:
    tree = make_tree()
    area = make_area(tree)
    figure = latent_draws(tree, area, ["P1", "P4"], latent=(2, 0))
    for ax, case in zip(figure.axes, ("P1", "P4"), strict=False):
        points = np.asarray(ax.collections[0].get_offsets())
        code = tree["posterior/z"].sel(case=case).to_numpy().reshape(-1, 4)
        np.testing.assert_array_equal(points, code[:, [2, 0]])
        shown = np.asarray(ax.collections[0].get_array())
        np.testing.assert_array_equal(shown, area.sel(case=case).to_numpy().ravel())
    assert "area [mm²]" in texts(figure)
    flat = latent_draws(tree, xr.zeros_like(area), ["P1", "P4"])
    flat.draw_without_rendering()
    first, second = (np.asarray(ax.collections[0].get_facecolor()) for ax in flat.axes[:2])
    np.testing.assert_array_equal(first, second)
    named = xr.where(area > 40, "large", "small").rename("kind")
    legend = latent_draws(tree, named).legends[0]
    assert {t.get_text() for t in legend.get_texts()} == set(np.unique(named))


def test_mode_bars_show_truth_and_frequencies_in_order() -> None:
    figure = mode_bars({"a": make_modes(), "b": make_modes()}, {"a": make_modes()})
    assert len(figure.axes) == 3
    for ax in figure.axes[:2]:
        true, sampled = (c for c in ax.containers if isinstance(c, BarContainer))
        assert [bar.get_height() for bar in true] == [0.4, 0.3, 0.2, 0.1]
        assert [bar.get_height() for bar in sampled] == [0.5, 0.3, 0.2, 0.0]
    assert [t.get_text() for t in figure.axes[1].get_xticklabels()] == ["10", "01", "11", "00"]
    assert "3 of 4 found · total variation 0.100" in texts(figure)
    rates = figure.axes[2]
    marks = next(c for c in rates.containers if isinstance(c, ErrorbarContainer))
    np.testing.assert_array_equal(marks.lines[0].get_ydata(), [0.45, 0.2])
    true_rates = [np.asarray(path.vertices)[0, 1] for path in rates.collections[0].get_paths()]
    assert true_rates == [0.4, 0.3]


def test_ged_by_samples_draws_every_line() -> None:
    table, others = make_energy(), make_energy().assign_attrs(source="a paper")
    others = others.assign_coords(model=["prob_unet", "stranger"])
    figure = ged_by_samples(table, others)
    ax = figure.axes[0]
    lines = {
        str(c.get_label()): c.lines[0] for c in ax.containers if isinstance(c, ErrorbarContainer)
    }
    np.testing.assert_array_equal(lines["prob_unet"].get_ydata(), [0.9, 0.5, 0.4])
    np.testing.assert_array_equal(lines["ensemble"].get_xdata(), [1, 4])  # no NaN
    by_label = {str(line.get_label()): line for line in ax.lines}
    np.testing.assert_array_equal(by_label["a perfect model"].get_ydata(), [0.6, 0.3, 0.2])
    assert by_label["prob_unet, published"].get_color() == lines["prob_unet"].get_color()
    assert (by_label["stranger, published"].get_alpha() or 1) < 0.5
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend.index("ensemble") < legend.index("a perfect model") < 3
    assert "a paper" in texts(figure)


def test_area_intervals_sort_cases_and_count_graders() -> None:
    sizes = segmentation.sizes(make_tree(), level=0.5)
    figure = area_intervals(sizes)
    ax = figure.axes[0]
    median = next(line for line in ax.lines if line.get_label() == "median").get_ydata()
    part = sizes.isel({"class": 0})
    np.testing.assert_array_equal(median, np.sort(part["median"]))
    order = np.argsort(part["median"].to_numpy())
    bars = [np.asarray(path.vertices)[:, 1] for path in ax.collections[0].get_paths()]
    np.testing.assert_array_equal(bars, np.stack([part["lower"], part["upper"]], 1)[order])
    inside = (part["grader_size"] >= part["lower"]) & (part["grader_size"] <= part["upper"])
    share = float(inside.where(part["grader_size"].notnull()).mean())
    assert f"{100 * share:.0f} % of the graders of all {CASES} cases inside" in texts(figure)
    drawn = {str(line.get_label()): np.size(line.get_ydata()) for line in ax.lines}
    assert drawn["grader inside"] == int(inside.sum())
    assert drawn["grader inside"] + drawn["grader outside"] == int(part["grader_size"].count())
    assert "50 % credible interval" in texts(figure) and "[pixels]" in ax.get_ylabel()
    assert len(area_intervals(sizes, num=2).axes[0].collections[0].get_paths()) == 2


# --- what is refused, and the report


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samples(make_tree(), make_images()[:2]), "images holds 2 cases"),
        (lambda: samples(make_tree(), make_images()[..., :4]), "the tree's masks 8 x 10"),
        (lambda: samples(make_tree(), make_images(), ["P9"]), "case must be ids"),
        (lambda: samples(make_tree(), make_images(), num_samples=0), "num_samples"),
        (
            lambda: samples(make_tree(), make_images(), colors={"vein": "red"}),
            "colors must be a mapping",
        ),
        (lambda: samples(xr.DataTree(), make_images()), "no posterior"),
        (lambda: uncertainty_maps(xr.Dataset(), make_images()), "maps has no"),
        (lambda: latent_plane(make_plane().drop_vars("first"), BINARY), "no coordinate"),
        (lambda: latent_plane(make_plane()[0], BINARY), "decoded must have the dimensions"),
        (lambda: latent_plane(make_plane(), BINARY, make_images()[0, :, :4]), "image is"),
        (lambda: latent_draws(make_tree(), make_area(make_tree()), latent=(0, 4)), "latent is"),
        (lambda: latent_draws(make_tree(), make_area(make_tree()), site="y"), "no posterior/y"),
        (lambda: mode_bars(make_modes().drop_vars("probability")), "modes has no probability"),
        (lambda: mode_bars({}), "modes is empty"),
        (lambda: ged_by_samples(make_energy().drop_vars("model")), "no coordinate"),
        (lambda: ged_by_samples(make_energy()[["floor"]]), "table has no ged"),
        (lambda: area_intervals(segmentation.sizes(make_tree()), "vein"), "class_name must be"),
        (lambda: area_intervals(segmentation.sizes(make_tree()), num=0), "num must be"),
    ],
)
def test_what_does_not_fit_is_named(make: Callable[[], Figure], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_samples_need_a_tree() -> None:
    with pytest.raises(TypeError):
        samples(make_tree()["posterior/probs"], make_images())  # type: ignore[arg-type]


def test_a_report_takes_further_parts(tmp_path: Path) -> None:
    part = Section("samples", "Samples <of masks>", paragraph("Look & see."))
    text = write_report(
        tmp_path / "r.html", title="Masks", tree=make_tree(), sections=[part]
    ).read_text()
    assert '<section id="samples"><h2>Samples &lt;of masks&gt;</h2><p>Look &amp; see.</p>' in text
    assert text.index('id="samples"') < text.index('id="provenance"')
    assert "one whole segmentation" in text and "Epistemic" not in text


@pytest.mark.parametrize("anchor", ["training", "two words", 'x"y', ""])
def test_a_report_refuses_anchors_that_are_taken_or_no_words(tmp_path: Path, anchor: str) -> None:
    part = Section(anchor, "Part", paragraph("Text."))
    with pytest.raises(ValueError, match="sections has the anchors"):
        write_report(tmp_path / "r.html", title="Masks", tree=make_tree(), sections=[part])
    assert list(tmp_path.iterdir()) == []
