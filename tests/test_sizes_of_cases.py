"""Cases of different sizes in one prediction: filled up, and the fill counts nowhere."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from ppl_med import storage
from ppl_med.analysis import calibration, scoring, segmentation, uncertainty
from ppl_med.inference import PointEstimate, predict
from ppl_med.models import BayesianSegmenter, DenseRegressor

SIZES: dict[int, list[Any]] = {2: [(6, 5), (4, 7), (3, 3)], 3: [(3, 6, 5), (2, 4, 7), (4, 3, 3)]}


def batches(space: int, order: list[int]) -> list[dict[str, Any]]:
    found = []
    for k in order:
        generator = torch.Generator().manual_seed(k)
        image = torch.randn(2, 1, *SIZES[space][k], generator=generator)
        ids = [f"{k}a", f"{k}b"]
        found.append({"image": image, "mask": (image[:, 0] > 0).long(), "id": ids})
    return found


def segmenter(space: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    conv = nn.Conv2d if space == 2 else nn.Conv3d
    model = BayesianSegmenter(conv(1, 2, 3, padding=1), ["no", "yes"], spatial_dims=space)
    return model, PointEstimate(model)


def draw(pair: Any, given: Any, **options: Any) -> xr.DataTree:
    return predict(pair[0], pair[1], given, draws=2, progress=False, **options)


@pytest.mark.parametrize("space", [2, 3])
@pytest.mark.parametrize("chunk_cases", [512, 2], ids=["one chunk", "chunks"])
def test_small_cases_are_filled_up(space: int, chunk_cases: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("ppl_med.inference.predictive.CHUNK_CASES", chunk_cases)
    pair, given = segmenter(space), batches(space, [0, 1, 2])
    tree = draw(pair, given)
    largest = tuple(np.max(SIZES[space], 0))
    assert tree["posterior/probs"].shape[4:] == largest
    assert tree["observed_data/mask"].shape[1:] == largest
    for k, one in enumerate(given):
        alone, rows = draw(pair, [one]), slice(2 * k, 2 * k + 2)
        inside = tuple(slice(size) for size in SIZES[space][k])
        for group, name, fill in (
            ("posterior", "probs", np.nan),
            ("posterior_predictive", "mask", -1),
            ("observed_data", "mask", -1),
        ):
            whole = np.array(tree[f"{group}/{name}"].isel(case=rows))
            part: Any = (..., *inside)
            if group != "posterior_predictive":  # drawn by the position of the case
                np.testing.assert_allclose(whole[part], alone[f"{group}/{name}"], rtol=1e-6)
            whole[part] = fill
            np.testing.assert_array_equal(whole, np.full_like(whole, fill))
        np.testing.assert_allclose(
            tree["log_likelihood/mask"].isel(case=rows), alone["log_likelihood/mask"], rtol=1e-9
        )


def test_analyses_leave_the_fill_out() -> None:
    pair, given = segmenter(2), batches(2, [0, 1, 2])
    tree = draw(pair, given)
    for analysis in (segmentation.ged, segmentation.dice_max, segmentation.soft_dice):
        together = analysis(tree)
        for k, one in enumerate(given):
            alone = analysis(draw(pair, [one]))
            for name in alone.data_vars:
                if alone[name].dims == ("case",):
                    got = together[name].isel(case=slice(2 * k, 2 * k + 2))
                    np.testing.assert_allclose(got, alone[name], atol=1e-9, err_msg=name)
    entries = scoring.entry_scores(tree)
    assert int(entries["nll"].notnull().sum()) == 2 * sum(a * b for a, b in SIZES[2])
    expected = np.mean(
        np.concatenate(
            [scoring.entry_scores(draw(pair, [one]))["nll"].values.ravel() for one in given]
        )
    )
    assert float(entries["nll"].mean()) == pytest.approx(expected)
    maps = uncertainty.entropy(tree)
    assert int(maps["predictive_entropy"].notnull().sum()) == 2 * sum(a * b for a, b in SIZES[2])
    both = uncertainty.summary(tree, mcse=False)["total"]
    parts = [uncertainty.summary(draw(pair, [one]), mcse=False)["total"] for one in given]
    assert float(both) == pytest.approx(float(np.mean(parts)))
    sizes = segmentation.sizes(tree)["grader_size"]
    expected = [int(one["mask"][case].sum()) for one in given for case in (0, 1)]
    np.testing.assert_array_equal(sizes[:, 0, 0], expected)


def test_a_diverged_draw_is_no_fill() -> None:
    tree = draw(segmenter(2), batches(2, [0]))
    probs, mask = tree["posterior/probs"], tree["observed_data/mask"]
    assert isinstance(probs, xr.DataArray) and isinstance(mask, xr.DataArray)
    with pytest.raises(ValueError, match="NaN or infinite"):
        segmentation.ged(probs.where(probs["case"] != "0a"), mask)


@pytest.mark.parametrize("all_draws", [True, False])
def test_a_diverged_draw_is_no_fill_of_parts_of_a_case(all_draws: bool, monkeypatch: Any) -> None:
    """Of a case that is read row by row, most parts hold no more than its first entry says."""
    monkeypatch.setattr("ppl_med.analysis.tree.blocks.BLOCK_BYTES", 1)
    tree = draw(segmenter(2), batches(2, [0, 2]))
    torch.manual_seed(0)
    model = DenseRegressor(nn.Conv2d(1, 2, 1))
    given = [{"image": torch.ones(2, 1, *size), "depth": torch.ones(2, *size)} for size in SIZES[2]]
    numbers = draw((model, PointEstimate(model)), given)
    analyses: dict[str, Any] = {
        "probs": scoring.score,
        "loc": partial(uncertainty.variance, mcse=False),
        "scale": partial(calibration.coverage, distribution="laplace"),
    }
    for name, analysis in analyses.items():
        one = (tree if name == "probs" else numbers).copy()
        analysis(one)
        group = one["posterior"].to_dataset().copy(deep=True)
        group[name][{"case": 0} if all_draws else {"case": 0, "draw": 1}] = np.nan
        one["posterior"] = xr.DataTree(group)
        with pytest.raises(ValueError, match=r"NaN or infinite|loc finite"):
            analysis(one)


def test_a_zarr_store_keeps_the_size_of_its_first_cases(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ppl_med.inference.predictive.CHUNK_CASES", 2)
    pair = segmenter(2)
    largest = [{"image": torch.zeros(2, 1, 6, 7), "id": ["x", "y"]}]
    given = largest + [{n: v for n, v in one.items() if n != "mask"} for one in batches(2, [0, 1])]
    tree = draw(pair, given, store=tmp_path / "run.zarr")
    xr.testing.assert_allclose(
        tree["posterior"].to_dataset(), draw(pair, given)["posterior"].to_dataset()
    )
    with pytest.raises(ValueError, match="larger than those of the first chunk"):
        draw(pair, given[::-1], store=tmp_path / "other.zarr")
    draw(pair, given[::-1], store=tmp_path / "run.nc")
    assert storage.load(tmp_path / "run.nc")["posterior/probs"].shape[4:] == (6, 7)


def test_maps_of_numbers_are_filled_with_nan() -> None:
    torch.manual_seed(0)
    model = DenseRegressor(nn.Conv2d(1, 2, 1))
    given = [
        {"image": torch.randn(2, 1, *size), "depth": torch.ones(2, *size)} for size in SIZES[2]
    ]
    tree = draw((model, PointEstimate(model)), given)
    seen = 2 * sum(a * b for a, b in SIZES[2])
    assert int(tree["observed_data/depth"].notnull().sum()) == seen
    assert int(tree["posterior/loc"].isel(draw=0).notnull().sum()) == seen
    assert np.isfinite(scoring.crps(tree)["crps_mean"])
