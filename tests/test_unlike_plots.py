"""Figures of scores of cases from elsewhere: what they show is what was given."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from test_plots import line, texts

from ppl_med.plots.unlike_cases import pvalue_steps, severity_curves, unlike_scores


def found(number: int, shift: float = 0.0) -> xr.Dataset:
    random = np.random.default_rng(number)
    score = random.normal(shift, 1.0, number)
    return xr.Dataset(
        {"score": ("case", score), "pvalue": ("case", random.uniform(size=number) ** (1 + shift))},
        attrs={"score": "knn"},
    )


def by_severity() -> xr.Dataset:
    dims = ("guide", "corruption", "severity")
    rising = np.broadcast_to(np.arange(6.0), (2, 3, 6)) + np.arange(3)[:, None]
    names = {"guide": ["point", "dropout"], "corruption": list("abc"), "severity": range(6)}
    attrs = {"units": "nats", "long_name": "Negative log-likelihood"}
    return xr.Dataset({"nll": (dims, rising.copy(), attrs)}, names)


def test_the_legend_counts_who_is_called_novel() -> None:
    inside, outside = found(40), {"cells": found(20, 2.0), "films": found(30, 3.0)}
    figure = pvalue_steps(inside, outside, level=0.1)
    for name, one in {"in-distribution": inside, **outside}.items():
        share = 100 * (one["pvalue"].values <= 0.1).mean()
        title = f"{name}: {share:.0f} % of {one.sizes['case']}"
        assert title in [item.get_label() for item in figure.axes[0].lines]
        x, y = line(figure.axes[0], title)
        at = 0.37
        assert y[np.searchsorted(x, at, "right") - 1] == (one["pvalue"].values <= at).mean()


def test_every_set_has_a_panel_with_all_its_cases() -> None:
    figure = unlike_scores(found(40), {"cells": found(20, 2.0), "films": found(30, 3.0)})
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title("left") for ax in shown] == ["cells (20)", "films (30)"]
    for ax in shown:
        known, other = (sum(p.get_height() for p in bars) for bars in ax.containers)
        assert known == pytest.approx(1) and other == pytest.approx(1)
    assert "knn, larger is more unlike" in texts(figure)


def test_lines_by_severity_are_medians_over_corruptions() -> None:
    figure = severity_curves(by_severity(), ["nll"])
    x, y = line(figure.axes[0], "point")
    assert y.tolist() == [1, 2, 3, 4, 5, 6] and np.diff(x) == pytest.approx(np.ones(5))
    assert "Negative log-likelihood" in texts(figure) and "[nats]" in texts(figure)


def test_wrong_input_is_told() -> None:
    with pytest.raises(ValueError, match="no pvalue"):
        pvalue_steps(found(4), found(4).drop_vars("pvalue"))
    with pytest.raises(ValueError, match="figures must be"):
        severity_curves(by_severity(), [])
    with pytest.raises(ValueError, match="dimensions"):
        severity_curves(by_severity().isel(guide=0), ["nll"])
    assert isinstance(unlike_scores(found(4), found(5)), Figure)
