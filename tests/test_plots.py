"""Figures: what is drawn is what the Dataset holds, axes name units, bad input stops early."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from ppl_med.analysis import scoring
from ppl_med.plots.attribution_maps import attribution
from ppl_med.plots.calibration import expected_calibration_error, reliability
from ppl_med.plots.case_cards import cases
from ppl_med.plots.theme import ALEATORIC, EPISTEMIC
from ppl_med.plots.training_curves import elbo
from ppl_med.plots.uncertainty_kinds import data_size, uncertainty


def make_history(num_steps: int = 120, warm_up: bool = True) -> xr.Dataset:
    rng = np.random.default_rng(0)
    step = np.arange(num_steps)
    nll = 0.3 + np.exp(-step / 10) + rng.normal(0, 0.02, num_steps)
    nll[:3] += 500.0
    kl = 2 + 5 * np.exp(-step / 30)
    weight = np.minimum(1.0, step / 60) if warm_up else np.ones(num_steps)
    return xr.Dataset(
        {
            "elbo": ("step", -(nll + kl)),
            "nll": ("step", nll),
            "kl": ("step", kl),
            "kl_weight": ("step", weight),
            "validation_nll": ("validation_epoch", [0.9, 0.5, 0.4]),
        },
        coords={"step": step, "epoch": ("step", step // 40), "validation_epoch": [0, 1, 2]},
    )


def make_tree(
    num_cases: int = 20, classes: tuple[str, ...] = ("benign", "malignant")
) -> xr.DataTree:
    rng = np.random.default_rng(1)
    label = rng.integers(0, len(classes), num_cases)
    logits = rng.normal(0, 1, (1, 1, num_cases, len(classes)))
    logits[..., np.arange(num_cases), label] += 1.5
    spread = rng.uniform(0.1, 1.5, (num_cases, 1))
    logits = logits + spread * rng.normal(0, 1, (2, 8, num_cases, len(classes)))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    case = [f"P{i:02d}" for i in range(num_cases)]
    posterior = xr.Dataset(
        {"probs": (("chain", "draw", "case", "class"), probs)},
        coords={"chain": [0, 1], "draw": np.arange(8), "case": case, "class": list(classes)},
    )
    data = xr.Dataset({"label": ("case", label)}, coords={"case": case})
    return xr.DataTree.from_dict({"/posterior": posterior, "/observed_data": data})


def make_images(num_cases: int = 20, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(2).normal(-300.0, 400.0, (num_cases, channels, 12, 16))


def make_attribution(num_cases: int = 2, channels: int = 1, keep_draws: bool = False) -> xr.Dataset:
    rng = np.random.default_rng(3)
    draws = xr.DataArray(
        rng.normal(0.2, 1.0, (2, 4, num_cases, channels, 12, 16)),
        dims=("chain", "draw", "case", "channel", "row", "col"),
        coords={"case": [f"P{i:02d}" for i in range(num_cases)]},
    )
    over = ("chain", "draw")
    result = xr.Dataset(
        {
            "mean": draws.mean(over),
            "sd": draws.std(over, ddof=1),
            "mcse": draws.std(over, ddof=1) / 8**0.5,
            "probability_positive": (draws > 0).mean(over),
        }
    )
    return result.assign(attribution=draws) if keep_draws else result


def make_table(num_seeds: int = 3) -> xr.Dataset:
    rng = np.random.default_rng(4)
    shape, dims = (2, 3, num_seeds), ("method", "fraction", "seed")
    return xr.Dataset(
        {
            "aleatoric": (dims, rng.uniform(0.05, 0.1, shape)),
            "epistemic": (dims, rng.uniform(0.001, 0.05, shape)),
        },
        coords={"method": ["MeanFieldNormal", "PointEstimate"], "fraction": [1.0, 0.1, 0.5]},
    )


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text))


def pixels(ax: Axes) -> np.ma.MaskedArray:
    return np.ma.asarray(ax.images[0].get_array())


def line(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    found = next(item for item in ax.lines if item.get_label() == label)
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


FIGURES: dict[str, Callable[[], Figure]] = {
    "elbo": lambda: elbo(make_history()),
    "reliability": lambda: reliability(scoring.reliability(make_tree())),
    "cases": lambda: cases(make_images(), make_tree(), num=2),
    "attribution": lambda: attribution(make_images(2), make_attribution()),
    "data_size": lambda: data_size(make_table()),
    "uncertainty": lambda: uncertainty(make_tree()),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_drawn_without_pyplot(name: str) -> None:
    from matplotlib import pyplot

    figure = FIGURES[name]()
    figure.draw_without_rendering()
    assert isinstance(figure, Figure)
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", ["elbo", "reliability", "data_size", "uncertainty"])
def test_every_y_axis_names_its_unit(name: str) -> None:
    figure = FIGURES[name]()
    axes = [ax for ax in figure.axes if ax.axison and ax.get_visible() and ax.get_yticks().size]
    labels = [ax.get_ylabel() for ax in axes if ax.get_subplotspec().is_first_col()]  # type: ignore[union-attr]
    assert labels and all("[" in label and "]" in label for label in labels)
    assert any(ax.get_xlabel() for ax in figure.axes)


def test_plots_need_no_torch() -> None:
    modules = (
        "attribution_maps calibration case_cards report training_curves uncertainty_kinds"
    ).split()
    code = f"import sys, {', '.join(f'ppl_med.plots.{m}' for m in modules)}\n" + (
        "print([m for m in ('torch', 'pyro', 'matplotlib.pyplot') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_elbo_draws_the_history() -> None:
    history = make_history()
    figure = elbo(history)
    for ax, name in zip(figure.axes, ("elbo", "nll", "kl", "kl_weight"), strict=False):
        x, y = line(ax, name)
        np.testing.assert_array_equal(x, history["step"])
        np.testing.assert_array_equal(y, history[name])
    x, y = line(figure.axes[1], "validation_nll")
    np.testing.assert_array_equal(y, history["validation_nll"])
    np.testing.assert_array_equal(x, [39, 79, 119])  # the last step of each epoch


def test_a_tighter_bound_that_was_trained_stands_in_the_place_of_the_elbo() -> None:
    history = make_history()
    history["bound"] = history["elbo"] + 1
    figure = elbo(history)
    np.testing.assert_array_equal(line(figure.axes[0], "bound")[1], history["bound"])
    assert "importance-weighted" in texts(figure)


def test_elbo_draws_every_member_of_an_ensemble() -> None:
    one = make_history()
    names = [name for name in one if "step" in one[name].dims or name == "validation_nll"]
    both = one.assign({name: xr.concat([one[name], one[name] + 1], "chain") for name in names})
    for ax, name in zip(elbo(both).axes, ("elbo", "nll", "kl"), strict=False):
        drawn = [found.get_ydata() for found in ax.lines if found.get_label() == name]
        np.testing.assert_array_equal(drawn, both[name].transpose("chain", "step"))


def test_elbo_running_mean_is_a_centred_mean() -> None:
    history = make_history(400)
    _, y = line(elbo(history).axes[2], "running mean")
    kl = history["kl"].to_numpy()
    np.testing.assert_allclose(y[200], kl[196:205].mean())
    np.testing.assert_allclose(y[0], kl[:5].mean())


def test_elbo_keeps_the_first_steps_from_squashing_the_rest() -> None:
    figure = elbo(make_history())
    low, high = figure.axes[1].get_ylim()
    assert high < 2.0 and low < 0.4
    assert "of 120 steps outside the frame" in texts(figure)
    flat = make_history()
    flat["nll"][:3] = 0.35
    assert figure_range(elbo(flat)) >= float(np.ptp(flat["nll"].to_numpy()))


def figure_range(figure: Figure) -> float:
    low, high = figure.axes[1].get_ylim()
    return high - low


def test_elbo_shows_the_kl_weight() -> None:
    assert len(elbo(make_history()).axes) == 4
    constant = elbo(make_history(warm_up=False))
    assert len(constant.axes) == 3 and "KL weight 1" in texts(constant)


def test_elbo_draws_a_single_step() -> None:
    elbo(make_history(1).drop_dims("validation_epoch")).draw_without_rendering()


def test_reliability_draws_the_bins() -> None:
    dataset = scoring.reliability(make_tree(200))
    figure = reliability(dataset)
    used = dataset.isel(bin=dataset["count"].to_numpy() > 0)
    x, y = line(figure.axes[0], "_nolegend_")
    np.testing.assert_array_equal(x, used["confidence"])
    np.testing.assert_array_equal(y, used["accuracy"])
    (bars,) = [c for c in figure.axes[0].containers if isinstance(c, ErrorbarContainer)]
    ends = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, np.stack([used["lower"], used["upper"]], 1), atol=1e-12)
    np.testing.assert_array_equal(figure.axes[1].patches[0].get_data()[0], dataset["count"])  # type: ignore[attr-defined]


def test_reliability_title_is_the_ece() -> None:
    dataset = scoring.reliability(make_tree(200))
    np.testing.assert_allclose(expected_calibration_error(dataset), float(dataset["ece"]))
    assert f"ECE {float(dataset['ece']):.3f}, n = 200" in texts(reliability(dataset))


def test_reliability_overlays_by_name() -> None:
    dataset = scoring.reliability(make_tree(200))
    figure = reliability({"dropout": dataset, "point $x$": dataset})
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert [label.split(" · ")[0] for label in labels] == ["dropout", r"point \$x\$"]


def card_values(figure: Figure) -> list[tuple[str, list[float], list[list[float]], list[float]]]:
    """Title, means, intervals and bar widths of every card, read back from the artists."""
    cards = []
    for index in range(0, len(figure.axes), 4):
        title, _, bars, split = figure.axes[index : index + 4]
        means = [item for item in bars.lines if str(item.get_label()).startswith("mean")]
        spans = [item for item in bars.lines if str(item.get_label()).startswith("interval")]
        cards.append(
            (
                title.texts[0].get_text(),
                [float(np.asarray(item.get_xdata())[0]) for item in means],
                [np.asarray(item.get_xdata()).tolist() for item in spans],
                [patch.get_width() for patch in split.patches],  # type: ignore[attr-defined]
            )
        )
    return cards


@pytest.mark.parametrize(
    ("draws", "words"), [(1, ""), (5, "67 % credible interval"), (8, "78 %"), (40, "90 %")]
)
def test_cases_state_the_interval_that_the_draws_reach(draws: int, words: str) -> None:
    """A further draw lies between the least and the largest of 5 with probability 4 / 6."""
    probs = make_tree()["posterior"]["probs"].isel(chain=[0])
    probs = probs.isel(draw=np.arange(draws) % probs.sizes["draw"])
    probs = probs.assign_coords(draw=np.arange(draws))
    apart = probs ** (1 + 1e-3 * probs["draw"])  # copies would count once
    figure = cases(make_images(), apart / apart.sum("class"), num=2)
    note = next(text.get_text() for text in figure.texts if "draw" in text.get_text())
    assert words in note and ("interval" in note) == (draws > 1)
    spans = [spans for _, _, spans, _ in card_values(figure)]
    assert all(bool(one) == (draws > 1) for one in spans)


def test_cases_draws_the_posterior() -> None:
    tree = make_tree()
    probs = tree["posterior"]["probs"]
    mean = probs.mean(("chain", "draw"))
    doubt = (mean * (1 - mean)).sum("class").to_numpy()  # total variance in closed form
    order = np.argsort(doubt)
    expected = [*order[::-1][:3], *order[:3]]
    figure = cases(make_images(), tree, num=3)
    for (title, means, spans, widths), index in zip(card_values(figure), expected, strict=True):
        assert title.startswith(f"Case P{index:02d}  ·  true: ")
        draws = probs.isel(case=index).to_numpy().reshape(-1, 2)
        np.testing.assert_allclose(means, draws.mean(0))
        ends = np.quantile(draws, [0.05, 0.95], axis=0, method="weibull")
        np.testing.assert_allclose(spans, ends.T)
        aleatoric = (draws * (1 - draws)).mean(0).sum()
        np.testing.assert_allclose(widths, [aleatoric, draws.var(0, ddof=1).sum()])
        extra = draws.var(0).sum() / (len(draws) - 1)  # of the divisor n - 1
        np.testing.assert_allclose(sum(widths), doubt[index] + extra)


def test_cases_colours_and_marks() -> None:
    tree = make_tree()
    figure = cases(make_images(), tree, num=10)
    colours = [to_hex(patch.get_facecolor()) for patch in figure.axes[3].patches]
    assert colours == [ALEATORIC.lower(), EPISTEMIC.lower()]
    guess = tree["posterior"]["probs"].mean(("chain", "draw")).to_numpy().argmax(1)
    wrong = int((guess != tree["observed_data"]["label"].to_numpy()).sum())
    titles = [title for title, *_ in card_values(figure)]
    assert 0 < wrong == sum("✗" in title for title in titles)


def test_cases_by_mutual_information_in_nats() -> None:
    tree = make_tree()
    figure = cases(make_images(), tree, num=1, by="mutual_information")
    probs = tree["posterior"]["probs"].to_numpy().reshape(16, 20, 2)
    expected = -(probs * np.log(probs)).sum(-1).mean(0)
    mean = probs.mean(0)
    information = -(mean * np.log(mean)).sum(-1) - expected
    index = int(information.argmax())
    title, _, _, widths = card_values(figure)[0]
    assert title.startswith(f"Case P{index:02d}") and "nats" in texts(figure)
    np.testing.assert_allclose(widths, [expected[index], information[index]])


def test_cases_prediction_sets_follow_the_case_ids() -> None:
    tree = make_tree()
    member = tree["posterior"]["probs"].mean(("chain", "draw")) > 0.3
    sets = xr.Dataset({"prediction_set": member})
    shown = texts(cases(make_images(), tree, sets, num=4))
    assert "{benign, malignant}" in shown
    assert shown == texts(cases(make_images(), tree, sets.isel(case=slice(None, None, -1)), num=4))
    with pytest.raises(ValueError, match="prediction_sets lacks 5 of the tree's cases"):
        cases(make_images(), tree, sets.isel(case=slice(5, None)))


def test_cases_shows_the_true_class_among_many() -> None:
    names = tuple(f"class {k}" for k in range(9))
    tree = make_tree(classes=names)
    least = tree["posterior"]["probs"].mean(("chain", "draw")).argmin("class")
    tree["observed_data"]["label"] = least
    figure = cases(make_images(), tree, num=10)
    for index in range(2, len(figure.axes), 4):
        bold = [t for t in figure.axes[index].texts if t.get_fontweight() == "bold"]
        assert len(bold) == 2  # its name and its number


def test_cases_without_labels_ids_or_a_second_case() -> None:
    probs = make_tree()["posterior"]["probs"].isel(case=[3]).drop_vars("case")
    figure = cases(make_images(1, channels=3), probs)
    assert len(card_values(figure)) == 1 and "true" not in texts(figure)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (make_images(19), "19 cases where 20 are described"),
        (make_images()[:, 0], "1 or 3 channels"),
        (np.full((20, 1, 4, 4), np.nan), "NaN"),
    ],
)
def test_cases_rejects_images(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cases(images, make_tree())


def test_attribution_draws_the_maps() -> None:
    dataset = make_attribution()
    figure = attribution(make_images(2), dataset, np.eye(12, 16)[None].repeat(2, 0))
    for row in range(2):
        axes = figure.axes[4 * row : 4 * row + 4]
        for ax, name in zip(axes[1:], ("mean", "sd", "probability_positive"), strict=True):
            np.testing.assert_array_equal(pixels(ax), dataset[name][row, 0])
        low, high = axes[1].images[0].get_clim()
        assert low == -high  # centred at 0
        assert axes[3].images[0].get_clim() == (0, 1)
        assert figure.axes[1].images[0].get_clim() == (low, high)  # shared by the rows
        assert [len(ax.collections) for ax in axes] == [1, 1, 1, 0]  # the outline


def test_attribution_hides_signs_that_are_not_clear() -> None:
    dataset = make_attribution()
    for name in ("mean", "sd", "mcse", "probability_positive"):
        dataset[name][:, :, :3] = 0.0
    figure = attribution(make_images(2), dataset)
    shown = np.ma.getmaskarray(pixels(figure.axes[3]))
    mean, error = abs(dataset["mean"][0, 0]), dataset["mcse"][0, 0]
    clear = (mean > 2 * error) & (mean > 0.05 * np.quantile(abs(dataset["mean"]), 0.995))
    np.testing.assert_array_equal(shown, ~clear.values)
    assert shown[:3].all() and clear[3:].any() and "grey: weak or unclear" in texts(figure)


def test_attribution_sums_channels_only_with_draws() -> None:
    dataset = make_attribution(1, channels=3, keep_draws=True)
    figure = attribution(make_images(1, channels=3), dataset)
    total = dataset["attribution"].sum("channel").isel(case=0).to_numpy().reshape(8, 12, 16)
    np.testing.assert_allclose(pixels(figure.axes[1]), total.mean(0))
    np.testing.assert_allclose(pixels(figure.axes[2]), total.std(0, ddof=1))
    np.testing.assert_allclose(pixels(figure.axes[3]), (total > 0).mean(0))
    split = attribution(make_images(1, channels=3), dataset.drop_vars("attribution"))
    assert [ax.get_ylabel() for ax in split.axes[0:12:4]] == [
        f"Case P00\nchannel {c}" for c in range(3)
    ]
    np.testing.assert_array_equal(pixels(split.axes[6]), dataset["sd"][0, 1])


def test_attribution_of_one_draw_says_that_its_spread_is_undefined() -> None:
    dataset = make_attribution()
    dataset["sd"][:] = np.nan
    dataset["probability_positive"][:] = np.nan
    figure = attribution(make_images(2), dataset)
    figure.draw_without_rendering()
    assert "undefined for one draw" in texts(figure)


def test_attribution_rejects_other_pictures() -> None:
    with pytest.raises(ValueError, match="pass the images that were explained"):
        attribution(make_images(2)[..., :10], make_attribution())
    with pytest.raises(ValueError, match="mask must be"):
        attribution(make_images(2), make_attribution(), np.zeros((2, 5, 5)))


def test_data_size_draws_means_and_seeds() -> None:
    table = make_table()
    figure = data_size(table)
    by_size = table.sortby("fraction")
    for ax, method in zip(figure.axes, range(2), strict=True):
        for name, colour in (("aleatoric", ALEATORIC), ("epistemic", EPISTEMIC)):
            values = by_size[name].isel(method=method).to_numpy()
            x, y = line(ax, name)
            np.testing.assert_array_equal(x, [0.1, 0.5, 1.0])
            np.testing.assert_allclose(y, values.mean(1))
            drawn = next(item for item in ax.lines if item.get_label() == name)
            assert drawn.get_color() == colour
            seeds = [i for i in ax.lines if i.get_color() == colour and i is not drawn]
            np.testing.assert_array_equal([i.get_ydata() for i in seeds], values.T)
        assert ax.get_yscale() == "log"


def test_data_size_says_when_a_point_estimate_has_no_epistemic_variance() -> None:
    table = make_table()
    table["epistemic"][1] = 0.0
    figure = data_size(table)
    figure.draw_without_rendering()
    assert "epistemic exactly 0 in places: not shown" in texts(figure)
    assert np.isnan(line(figure.axes[1], "epistemic")[1]).all()


def test_data_size_of_one_method_and_one_seed() -> None:
    table = make_table().isel(method=0, seed=0)
    figure = data_size(table)
    _, y = line(figure.axes[0], "epistemic")
    np.testing.assert_array_equal(y, table.sortby("fraction")["epistemic"])
    assert len(figure.axes) == 1


def test_uncertainty_splits_right_from_wrong() -> None:
    tree = make_tree(60)
    main = uncertainty(tree).axes[2]
    guess = tree["posterior"]["probs"].mean(("chain", "draw")).to_numpy().argmax(1)
    wrong = guess != tree["observed_data"]["label"].to_numpy()
    draws = tree["posterior"]["probs"].to_numpy().reshape(16, 60, 2)
    aleatoric, epistemic = (draws * (1 - draws)).mean(0).sum(1), draws.var(0, ddof=1).sum(1)
    for name, which in (("right", ~wrong), ("wrong", wrong)):
        x, y = line(main, f"{name} ({which.sum()})")
        np.testing.assert_allclose(x, aleatoric[which])
        np.testing.assert_allclose(y, epistemic[which])


def test_cases_without_a_label_are_neither_right_nor_wrong() -> None:
    tree = make_tree(30)
    label: Any = tree["observed_data"]["label"].copy()
    label[:10] = -1
    tree["observed_data"]["label"] = label
    main = uncertainty(tree).axes[2]
    counts = {str(item.get_label()): np.size(item.get_xdata()) for item in main.lines}
    assert counts.pop("not labelled (10)") == 10 and sum(counts.values()) == 20
    guess = tree["posterior"]["probs"].mean(("chain", "draw")).to_numpy().argmax(1)
    assert counts[f"right ({int((guess == label.to_numpy()).sum())})"]
    titles = [title for title, *_ in card_values(cases(make_images(30), tree, num=15))]
    assert len([title for title in titles if "true" in title]) == 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: elbo(make_history().drop_vars("kl")), "history has no kl .*inference.fit"),
        (lambda: elbo(make_history().isel(step=slice(0))), "no step"),
        (lambda: reliability({}), "datasets is empty"),
        (lambda: reliability(xr.Dataset()), "datasets has no confidence"),
        (lambda: cases(make_images(), make_tree(), num=0), "num must be a whole number, 1 or more"),
        (lambda: data_size(make_table().drop_vars("fraction")), "no coordinate fraction"),
        (lambda: data_size(-make_table()), "negative"),
        (lambda: data_size(make_table().expand_dims("class")), "average the others first"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Figure], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_members_that_stopped_earlier_end_earlier() -> None:
    """The KL weight is that of the member that trained longest."""
    whole = make_history()
    short = whole.isel(step=slice(80), validation_epoch=slice(2)).drop_vars("epoch")
    both = xr.concat([short.reindex_like(whole), whole.drop_vars("epoch")], "chain")
    figure = elbo(both.assign_coords(epoch=whole["epoch"]))
    ends = [np.isfinite(line.get_ydata()).sum() for line in figure.axes[0].lines[:2]]
    assert ends == [80, 120]
    assert np.isfinite(figure.axes[3].lines[0].get_ydata()).sum() == 120
