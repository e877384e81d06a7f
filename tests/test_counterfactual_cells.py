"""The study of counterfactuals: a run from end to end, its figures, and their picture."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from ppl_med.plots.counterfactual import side_by_side

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)


@pytest.fixture
def study(monkeypatch) -> Any:
    """The example as a module."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("counterfactuals.run")


@pytest.fixture
def judges(study) -> Any:
    """What judges the counterfactuals of the example."""
    return importlib.import_module("counterfactuals.judges")


def cells(folder: Path) -> Path:
    """A file like that of the malaria cells: a bright disc, and in class 1 a dark spot on it."""
    arrays: dict[str, Any] = {}
    row, col = np.mgrid[:50, :50] - 25
    disc = 150.0 * (row**2 + col**2 < 400)
    for split, num in {"train": 400, "val": 40, "test": 40}.items():
        label = np.arange(num) % 2
        images = disc + 20 * RNG.uniform(size=(num, 50, 50))
        images[label == 1, 20:28, 20:28] -= 100
        arrays |= {f"{split}_images": images.clip(0, 255).astype(np.uint8)}
        arrays |= {f"{split}_labels": label}
        arrays |= {f"{split}_patient": np.array([f"P{split}{case}" for case in range(num)])}
    np.savez(folder / "malaria.npz", **arrays)
    return folder


def result(cases: int = 4, draws: int = 8, **change: Any) -> xr.Dataset:
    """What a search returns, of any content."""
    shape = (cases, 1, 6, 6)
    image, step = RNG.normal(size=shape), RNG.normal(size=shape)
    flipped = RNG.uniform(size=(1, draws, cases)) < 0.7
    dims = ("case", "channel", "row", "col")
    variables: dict[str, Any] = {
        "image": (dims, image),
        "counterfactual": (dims, image + step),
        "change": (dims, step, {"units": "intensity"}),
        "flipped": (("chain", "draw", "case"), flipped),
        "already": (("chain", "draw", "case"), np.zeros_like(flipped)),
        "flip_probability": ("case", flipped.mean((0, 1))),
        "present": ("case", np.arange(cases) % 2),
        "target": ("case", 1 - np.arange(cases) % 2),
        "realism": ("case", RNG.normal(size=cases)),
        "transferred": ("case", np.array([1.0, 0.0, np.nan, 1.0])[:cases]),
        **{n: ("case", RNG.uniform(size=cases)) for n in ("l1", "l2", "sparsity")},
        "high_frequency_share": ("case", RNG.uniform(size=cases)),
    }
    variables |= {name: ("case", values) for name, values in change.items()}
    return xr.Dataset(variables, {"case": [f"cell-{k}" for k in range(cases)]})


@pytest.mark.filterwarnings("ignore:the KL is:UserWarning")
def test_a_run_saves_what_it_says_and_resumes(study, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    data = cells(tmp_path)
    study.main(study.Options(data=data, out=out, smoke=True, method=("diffusion",)))
    text = (out / "table.md").read_text()
    assert text in capsys.readouterr().out.replace("\r", "\n")
    kinds = [*study.NAIVE, *study.GENERATIVE, study.DIFFUSION, "nearest training image"]
    assert [line.split("|")[1].strip() for line in text.splitlines() if "|" in line][2:] == kinds
    table = xr.load_dataset(out / "table.nc").isel(dataset=0)
    naive = xr.load_dataset(out / "malaria" / "minimal-perturbation.nc")
    for kind, name in zip(
        kinds[:3], ("minimal-perturbation", "sparse-additive-map", "latent"), strict=True
    ):
        one = xr.load_dataset(out / "malaria" / f"{name}.nc")
        line = table.sel(kind=kind)
        assert float(line["flipped"]) == (one["flip_probability"] > 0.5).mean()
        flipped, already = (
            one[n].values.reshape(-1, 4).astype(bool) for n in ("flipped", "already")
        )
        per_draw = flipped.sum(1)[~already.all(1)] / (~already).sum(1)[~already.all(1)]
        assert float(line["flip_probability"]) == pytest.approx(per_draw.mean())
        gain = (one["realism"] - naive["realism"]).values
        assert float(line["realism_gain"]) == pytest.approx(gain.mean(), abs=1e-9)
        assert (one["present"] != one["target"]).all() and one.sizes["case"] == 4
        np.testing.assert_array_equal(one["image"], naive["image"])
    chain = xr.load_dataset(out / "malaria" / "through-a-diffusion.nc")
    assert f"off by {float(chain['round_trip'].mean()):.2f} sd" in text
    assert (out / "report.html").read_text().count("sparse additive map") >= 1
    assert (out / "malaria" / "posterior.nc").exists()
    before = {path for path in out.rglob("*") if path.is_file()}
    study.main(study.Options(data=data, out=out, smoke=True, resume=True, method=("diffusion",)))
    assert (out / "table.md").read_text() == text
    assert {path for path in out.rglob("*") if path.is_file()} == before


def test_figures_are_means_over_cases_and_draws(judges) -> None:
    one = result(realism=[3.0, 5.0, 7.0, 9.0])
    naive = xr.DataArray([1.0, 2.0, 3.0, 4.0], dims="case", coords={"case": one["case"]})
    real = {0: np.array([0.0, 6.0, 8.0]), 1: np.array([4.0, 6.0])}
    line = judges.figures_of(one, naive, real)
    assert float(line["realism_gain"]) == 3.5
    assert float(line["realism_gain_se"]) == pytest.approx(np.std([2, 3, 4, 5], ddof=1) / 2)
    # targets are 1, 0, 1, 0: 0 of 2, 1 of 3, 2 of 2 and 3 of 3 real images are less likely
    assert float(line["rank_among_real"]) == pytest.approx((0 + 1 / 3 + 1 + 1) / 4)
    assert float(line["transferred"]) == pytest.approx(2 / 3) and line["transferred_num"] == 3
    assert float(line["transferred_se"]) == pytest.approx(np.std([1, 0, 1], ddof=1) / 3**0.5)
    per_draw = one["flipped"].mean("case").values.ravel()
    assert float(line["flip_probability_lower"]) == pytest.approx(np.quantile(per_draw, 0.05))
    assert float(line["flip_probability"]) == pytest.approx(per_draw.mean())


def test_another_net_is_asked_only_where_it_agreed(judges, monkeypatch) -> None:
    """A net that reads the first pixel: 0 where it is below 0."""
    one = result()
    for name, pixel in {"image": [-1, 1, 1, -1], "counterfactual": [1, -1, 1, -1]}.items():
        one[name].values[:, 0, 0, 0] = pixel
    net = lambda x: torch.stack([-x[:, 0, 0, 0], x[:, 0, 0, 0]], 1)  # noqa: E731
    monkeypatch.setattr(judges, "functions", lambda *pair, draws, seed: [net])
    monkeypatch.setattr(judges, "density", lambda *given: [np.zeros(4), np.ones(4)])
    pair = (None, torch.nn.Linear(1, 1))
    found = judges.judged(one, pair, pair, 0)
    # present classes are 0, 1, 0, 1; the net sees 0, 1, 1, 0, and 1, 0 in what the first become
    np.testing.assert_array_equal(found["transferred"], [1, 1, np.nan, np.nan])
    assert (found["realism_se"] == 1).all()


def test_cases_are_right_and_balanced(study) -> None:
    label = np.arange(40) % 2
    wrong = np.isin(np.arange(40), [0, 1, 2, 3])
    probs = np.zeros((1, 2, 40, 2))
    probs[..., np.arange(40), np.where(wrong, 1 - label, label)] = 1
    tree = xr.DataTree.from_dict({
        "posterior": xr.Dataset({"probs": (("chain", "draw", "case", "class"), probs)}),
        "observed_data": xr.Dataset({"label": ("case", label)}),
    })  # fmt: skip

    class Given:
        options = study.Options(cases=5)

    chosen, others = study.choose(Given, tree)
    assert not wrong[chosen].any() and np.bincount(label[chosen]).tolist() == [5, 5]
    assert sorted([*chosen, *others]) == list(range(40))


# --- the picture


def test_side_by_side_shows_every_kind() -> None:
    first = result()
    second = result()
    for name in ("image", "present", "target"):
        second[name] = first[name]
    figure = side_by_side({"a": first, "b": second}, ["well", "ill"])
    figure.draw_without_rendering()
    columns = 5
    axes = np.array(figure.axes[: 5 * columns]).reshape(5, columns)
    for kind, one in enumerate((first, second)):
        for row in range(4):
            shown = np.asarray(axes[row, 2 + 2 * kind].images[0].get_array())
            np.testing.assert_allclose(shown, one["change"][row, 0])
            share = f"flips in {float(one['flip_probability'][row]):.0%}"
            assert axes[row, 1 + 2 * kind].get_xlabel() == share
        limits = {axes[row, 2 + 2 * kind].images[0].get_clim() for row in range(4)}
        ((low, high),) = limits
        assert low == -high < 0, "the colour bar is signed"
    assert axes[0, 0].get_ylabel() == "well\n→ ill" and axes[1, 0].get_ylabel() == "ill\n→ well"
    assert axes[0, 1].get_title() == "a" and axes[0, 3].get_title() == "b"


def test_pictures_of_other_cases_are_refused() -> None:
    first = result()
    with pytest.raises(ValueError, match="'b'\\] is of other cases, images or targets"):
        side_by_side({"a": first, "b": result()})
    with pytest.raises(ValueError, match="results is empty"):
        side_by_side({})
    with pytest.raises(ValueError, match="no change"):
        side_by_side({"a": first.drop_vars("change")})
    with pytest.raises(ValueError, match="classes has 1 names"):
        side_by_side({"a": first}, ["well"])
    with pytest.raises(ValueError, match="16 cases are more than 12"):
        side_by_side({"a": xr.concat([first] * 4, "case")})
    with pytest.raises(ValueError, match="2 channels"):
        side_by_side({"a": xr.concat([first] * 2, "channel", data_vars="minimal")})
