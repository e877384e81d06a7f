"""The card of a run of numbers: errors, coverage, the trivial prediction, with intervals."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from number_trees import number_tree
from PIL import Image
from scipy import stats

from ppl_med import runs, storage
from ppl_med.analysis import calibration, exports, scoring
from ppl_med.runs.card_figures import calibrated, performance, spread
from ppl_med.runs.model_card import model_card

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def normal_tree(cases: int, draws: int = 200) -> xr.DataTree:
    """Observations from their own prediction, Normal(loc, 2) with loc of each case."""
    rng = np.random.default_rng(3)
    loc = rng.normal(50, 5, cases)
    value = loc + 2 * rng.normal(size=cases)
    drawn = loc + 2 * rng.normal(size=(1, draws, cases))
    shape = (1, draws, cases)
    posterior = {"loc": np.broadcast_to(loc, shape), "scale": np.full(shape, 2.0)}
    return number_tree(value, drawn, posterior)


def test_figures_are_those_of_closed_forms() -> None:
    tree = normal_tree(400)
    value, loc = (np.asarray(tree[name]) for name in ("observed_data/value", "posterior/loc"))
    loc = loc[0, 0]
    found = performance(tree)
    rmse = found["RMSE of the mean prediction"]
    assert rmse[0] == pytest.approx(np.sqrt(np.mean((value - loc) ** 2)))
    squares = (value - loc) ** 2
    half = stats.t.ppf(0.975, 399) * squares.std(ddof=1) / 20
    np.testing.assert_allclose(rmse[1:], np.sqrt(squares.mean() + np.array([-half, half])))
    crps = scoring.crps(tree)
    half = stats.t.ppf(0.975, 399) * float(crps["crps_mean_se"])
    mean = float(crps["crps_mean"])
    np.testing.assert_allclose(found["CRPS"], (mean, mean - half, mean + half))
    for level in (0.5, 0.9):
        held = calibration.coverage(tree, levels=[level])
        expected = [float(held[name][0]) for name in ("coverage", "lower", "upper")]
        name = f"coverage of the central {level:.0%} interval"
        np.testing.assert_allclose(calibrated(tree)[name], expected)
    noise = spread(tree)["aleatoric standard deviation, of the image itself"]
    np.testing.assert_allclose(noise, 2.0)


def test_intervals_are_over_patients_where_the_tree_knows_them() -> None:
    """Each case twice: nothing new is known, so intervals stay as long as those of the half."""
    half = normal_tree(30)
    rows = np.repeat(np.arange(30), 2)
    groups = {}
    for name in half.children:
        part = half[name].to_dataset().isel(case=rows)
        groups[name] = part.assign_coords(case=[f"c{k}" for k in range(60)])
    patients = xr.Dataset({"patient": ("case", [f"p{k}" for k in rows])})
    tree = xr.DataTree.from_dict({**groups, "constant_data": patients})
    for figures in (performance, calibrated):
        for name, expected in figures(half).items():
            np.testing.assert_allclose(figures(tree)[name], expected, rtol=0.03, err_msg=name)


def test_what_was_not_observed_counts_in_no_figure() -> None:
    whole = normal_tree(40)
    gaps = whole.copy(deep=True)
    np.asarray(gaps["observed_data/value"])[30:] = np.nan
    part = xr.DataTree.from_dict(
        {name: whole[name].to_dataset().isel(case=slice(30)) for name in whole.children}
    )
    for figures in (performance, calibrated):
        for name, expected in figures(part).items():
            np.testing.assert_allclose(figures(gaps)[name], expected, err_msg=name)
    np.asarray(gaps["observed_data/value"])[:] = np.nan
    assert performance(gaps) == calibrated(gaps) == {}


def test_several_numbers_of_a_case_have_figures_of_their_own() -> None:
    one = normal_tree(30)
    both = xr.DataTree.from_dict(
        {
            name: xr.concat([one[name].to_dataset(), 3 * one[name].to_dataset()], "finding")
            .assign_coords(finding=["age", "weight"])
            .transpose(..., "finding")
            for name in one.children
        }
    )
    single, several = performance(one), performance(both)
    for name, times in {"age": 1.0, "weight": 3.0}.items():
        found = several[f"RMSE of the mean prediction of {name}"]
        np.testing.assert_allclose(found, times * np.array(single["RMSE of the mean prediction"]))
    assert len(calibrated(both)) == 2 * len(calibrated(one)) == len(spread(both)) == 4


@pytest.fixture(scope="module")
def ages(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A regressor of an age that is not in the picture, with its test data predicted."""
    folder, rng = tmp_path_factory.mktemp("ages"), np.random.default_rng(0)
    lines = ["path,age,patient,split"]
    for case in range(30):
        name, split = f"film{case:02d}.png", "train" if case < 18 else "test"
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / name)
        lines.append(f"{name},{rng.normal(60, 9):.3f},p{case // 2},{split}")
    (folder / "films.csv").write_text("\n".join(lines) + "\n")
    layers: list[dict[str, Any]] = [
        {"name": "torch.nn.Flatten"},
        {"name": "torch.nn.Linear", "in_features": 16, "out_features": 2},
    ]
    reader = {"name": "ppl_med.data.from_table", "table": str(folder / "films.csv")}
    config = {
        "net": {"name": "torch.nn.Sequential", "args": layers},
        "model": {"name": "ppl_med.models.BayesianRegressor"},
        "guide": {"name": "ppl_med.inference.MeanFieldNormal"},
        "data": {"source": {**reader, "label": None, "value": "age"}},
        "fit": {"epochs": 1, "device": "cpu"},
        "predict": {"draws": 4, "device": "cpu"},
    }
    run = runs.fit(config, folder / "run", progress=False)
    runs.predict(run.folder, progress=False)
    return run


def test_the_card_of_a_regression_run_has_the_trivial_prediction(ages: runs.Run) -> None:
    bundle = runs.export(ages.folder, ages.folder.parent / "bundle")
    card = (bundle / "docs/README.md").read_text(encoding="utf-8")
    assert "Not measured" not in card and "is not known" not in card
    assert "measured on 12 cases of 6 patients" in card
    table = pd.read_csv(ages.folder.parent / "films.csv")
    train, test = (table.age[table.split == name].to_numpy() for name in ("train", "test"))
    found = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    trivial = found["eval_metrics"]["RMSE of the mean of the training values, which sees no image"]
    assert trivial["value"] == pytest.approx(np.sqrt(np.mean((test - train.mean()) ** 2)))
    assert trivial["lower_95"] < trivial["value"] < trivial["upper_95"]
    names = ("RMSE of the mean prediction", "CRPS", "coverage of the central 90% interval")
    for text in (*names, "epistemic standard deviation, for want of training data"):
        assert re.search(rf"^\| {text} \| [\d.]+ \| [\d.]+ to [\d.]+ \|$", card, re.MULTILINE)


def test_a_card_says_that_the_trivial_prediction_is_not_known(ages: runs.Run) -> None:
    tree = storage.load(ages.folder / "posterior.nc")
    assert isinstance(tree, xr.DataTree)
    known = performance(tree, ages)
    unknown = performance(tree)
    assert list(unknown) == [name for name in known if "sees no image" not in name]
    card = model_card(ages, tree, (unknown, calibrated(tree)))
    assert "The mean of the training values, the trivial prediction, is not known." in card
    bare = model_card(ages)
    assert bare.count("Not measured") == 2 and "trivial" not in bare


def test_the_bundle_of_a_regression_run_predicts(ages: runs.Run, tmp_path: Path) -> None:
    import monai.bundle

    bundle = runs.export(ages.folder, tmp_path / "bundle")
    folder = ages.folder.parent
    settings: dict[str, Any] = {"bundle_root": str(bundle), "pattern": "film??.png"}
    monai.bundle.run(
        config_file=str(bundle / "configs/inference.json"),
        dataset_dir=str(folder),
        output_dir=str(tmp_path / "out"),
        device="cpu",
        **settings,
    )
    table = pd.read_csv(tmp_path / "out/predictions.csv").set_index("id")
    tree = storage.load(ages.folder / "posterior.nc")
    assert isinstance(tree, xr.DataTree)
    expected = exports.to_frame(tree).set_index("id")
    ids = [Path(name).stem for name in expected.index]
    for column in ("mean", "sd", "sd_model"):
        np.testing.assert_allclose(table.loc[ids, column], expected[column], rtol=1e-5)
    assert len(table) == 30
