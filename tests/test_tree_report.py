"""The report on any tree: what is shown of each kind, what can be saved, text that stays text."""

import base64
import csv
import io
import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from analysis_table import class_tree, number_tree
from report_pages import HOSTILE, RESAMPLES, TREES, few_resamples, page, volume_tree
from test_report import Page

from ppl_med.analysis import conformal, detection, findings, scoring, segmentation, uncertainty
from ppl_med.plots.number_intervals import predicted_numbers
from ppl_med.plots.report import Section, data_table, report_tree
from ppl_med.plots.report.kinds import kind_of
from ppl_med.plots.report.page import written
from ppl_med.plots.report.viewer import MOST_SLICES, choose_slices

SECTIONS = {
    "boxes": "boxes objects box-scores provenance",
    "classes": "uncertainty cases reliability ranking calls cases-table scores provenance",
    "findings": "reliability findings cases-table provenance",
    "masks": "masks overlap pixels sizes scores provenance",
    "graders": "masks graders pixels sizes scores provenance",
    "drawn": "masks graders sizes scores provenance",
    "volumes": "masks overlap pixels sizes scores provenance",
    "numbers": "errors numbers coverage scores provenance",
    "maps": "errors maps coverage scores provenance",
    "other": "contents provenance",
    "hostile": "masks overlap pixels sizes scores provenance",
}


def saved(path: Path, name: str) -> list[dict[str, str]]:
    """A table of a page, read from its link."""
    (link,) = [one for one in Page(path).all("a") if one.get("download") == f"{name}.csv"]
    head, data = str(link["href"]).split(",", 1)
    assert head == "data:text/csv;charset=utf-8;base64"
    text = base64.b64decode(data, validate=True).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("kind", TREES)
def test_every_kind_of_tree_has_a_page_that_stands_alone(kind: str) -> None:
    text = page(kind).read_text(encoding="utf-8")
    found = Page(page(kind))  # raises where tags do not nest
    assert found.sections == SECTIONS[kind].split()
    assert "Not shown" not in text
    assert not re.search(r"https?://|@import|url\(", re.sub(r"url=javascript", "", text))
    for tag, attrs in found.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
        target = str(attrs.get("href") or attrs.get("src") or "#")
        assert target.startswith(("#", "data:image/png;base64,", "data:text/csv;")), target
    assert not {"iframe", "link", "svg", "object", "embed", "base", "form"} & {
        tag for tag, _ in found.tags
    }
    assert len(text) < 2_000_000


@pytest.mark.parametrize("kind", TREES)
def test_every_page_is_labelled_for_those_who_do_not_see_it(kind: str) -> None:
    found = Page(page(kind))
    assert all(len(str(image["alt"])) > 8 for image in found.all("img"))
    ids = [str(attrs["id"]) for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labels = {attrs["for"] for attrs in found.all("label")}
    assert {attrs["id"] for attrs in found.all("input")} == labels
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    for attrs in found.all("div") + found.all("figure"):
        assert "tabindex" not in attrs or attrs.get("aria-label")
    assert all(attrs.get("scope") in ("col", "row") for attrs in found.all("th"))


def test_hostile_names_run_nothing() -> None:
    text = page("hostile").read_text(encoding="utf-8")
    found = Page(page("hostile"))
    assert len(found.all("script")) == 1 and len(found.all("style")) == 1
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    assert len(script) == 1 and "steal" not in script[0] and "innerHTML" not in script[0]
    shown = " ".join(found.text) + " ".join(str(one["alt"]) for one in found.all("img"))
    flat = " ".join(shown.split())
    assert all(" ".join(one.split()) in flat for one in HOSTILE)  # as they were typed
    policy = str(found.all("meta")[3]["content"])
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_pages_without_slider_have_no_script() -> None:
    for kind in ("classes", "masks", "numbers"):
        found = Page(page(kind))
        assert not found.all("script")
        assert "script-src" not in str(found.all("meta")[3]["content"])


def test_a_volume_shows_its_middle_slice_until_the_slider_moves() -> None:
    found = Page(page("volumes"))
    ranges = found.all("input")
    assert len(ranges) == 3  # cases shown
    for one in ranges:
        assert one["type"] == "range" and (one["min"], one["max"]) == ("1", "4")
    slices = [attrs for attrs in found.all("div") if attrs.get("class") == "slice"]
    visible = [number for number, attrs in enumerate(slices) if "hidden" not in attrs]
    assert visible == [2, 6, 10] and len(slices) == 12
    control = [attrs for attrs in found.all("div") if attrs.get("class") == "control"]
    assert all("hidden" in attrs for attrs in control)  # of no use without the script


def test_slices_are_few_and_hold_what_there_is() -> None:
    present = np.zeros(300, bool)
    present[100:200] = True
    chosen = choose_slices(present)
    assert len(chosen) == MOST_SLICES and chosen[0] == 98 and chosen[-1] == 201
    assert choose_slices(np.zeros(5, bool)).tolist() == [0, 1, 2, 3, 4]
    assert choose_slices(present[100:101]).tolist() == [0]


def test_saved_scores_are_those_of_the_analyses() -> None:
    tree = class_tree()
    rows = {row["score"]: row for row in saved(page("classes"), "scores")}
    ranked = scoring.discrimination(tree, resamples=RESAMPLES)
    assert float(rows["auroc"]["value"]) == float(ranked["auroc"])
    assert float(rows["auroc"]["lower"]) == float(ranked["auroc_lower"])
    assert float(rows["nll"]["value"]) == float(scoring.score(tree)["nll"])
    point = scoring.operating_point(tree)
    for row, value in zip(
        saved(page("classes"), "calls-of-each-class"), point["sensitivity"], strict=True
    ):
        assert float(row["Sensitivity, 95 % interval over cases"]) == float(value)
    cases = saved(page("classes"), "predictions-per-case")
    assert [row["case"] for row in cases] != sorted(row["case"] for row in cases)
    mean = tree["posterior/probs"].mean(("chain", "draw"))
    for row in cases:
        own = mean.sel(case=row["case"])
        assert float(row["p(y)"]) == pytest.approx(float(own.sel({"class": "y"})))


def test_saved_volumes_and_dice_are_those_of_the_analyses() -> None:
    tree = volume_tree()
    sizes = segmentation.sizes(tree, level=0.9)
    rows = saved(page("volumes"), "volumes")
    assert len(rows) == 8
    for row in rows:
        one = sizes.sel({"case": row["case"], "class": row["structure"]})
        assert float(row["mean [pixels]"]) == float(one["mean"])
        assert float(row["mean [pixels] upper"]) == float(one["upper"])
    found = scoring.overlap(tree)
    for row in saved(page("volumes"), "dice-and-iou-per-structure"):
        expected = float(found["dice_per_class"].sel({"class": row["structure"]}))
        assert float(row["Dice"]) == expected


def test_saved_findings_are_those_of_one_classifier_each() -> None:
    tree = TREES["findings"]()
    for row in saved(page("findings"), "scores-of-each-finding"):
        one = findings.select(tree, row["finding"])
        expected = scoring.discrimination(one, resamples=0)
        assert float(row["AUROC"]) == pytest.approx(float(expected["auroc"]))


def test_masks_without_probabilities_have_frequencies() -> None:
    rows = saved(page("drawn"), "entropy-per-case")
    masks = np.asarray(TREES["drawn"]()["posterior_predictive/mask"])
    flat = masks.reshape(-1, *masks.shape[2:])
    share = np.stack([(flat == k).mean(0) for k in range(flat.max() + 1)])
    logs = np.log(np.where(share > 0, share, 1))
    entropy = -(share * logs).sum(0).mean((1, 2))
    assert [float(row["mean entropy [nats per pixel]"]) for row in rows] == pytest.approx(
        sorted(entropy, reverse=True)
    )


def test_what_an_analysis_cannot_tell_is_said_in_its_place(tmp_path: Path) -> None:
    tree = class_tree()
    tree["observed_data"] = xr.DataTree(xr.zeros_like(tree["observed_data"].to_dataset()))
    with few_resamples():
        text = " ".join(Page(report_tree(tree, tmp_path / "r.html")).text)
    assert "Accuracy" in text and "AUROC" not in text.split("Scores")[-1]
    one = number_tree(draws=1)
    one["posterior"] = xr.DataTree(one["posterior"].to_dataset().isel(chain=[0]))
    one["posterior_predictive"] = xr.DataTree(
        one["posterior_predictive"].to_dataset().isel(chain=[0])
    )
    del one["log_likelihood"]
    assert report_tree(one, tmp_path / "r.html").exists()


def test_trees_without_observations_or_images_have_a_page(tmp_path: Path) -> None:
    for kind in ("classes", "findings", "masks", "numbers", "maps"):
        tree = TREES[kind]().filter(
            lambda node: node.name not in ("observed_data", "log_likelihood")
        )
        found = Page(report_tree(tree, tmp_path / "r.html"))
        assert "scores" not in found.sections and len(found.sections) > 1, kind
        assert "Not shown" not in " ".join(found.text)


def test_numbers_without_draws_of_them_are_shown_all_the_same(tmp_path: Path) -> None:
    for kind in ("numbers", "maps"):
        tree = TREES[kind]().filter(lambda node: node.name == "posterior")
        found = Page(report_tree(tree, tmp_path / "r.html"))
        assert found.sections == [kind, "provenance"] and len(found.all("img")) > 0
        assert "Not shown" not in " ".join(found.text)
        if kind == "numbers":
            total = uncertainty.variance(tree, mcse=False)["total"]
            for row in saved(tmp_path / "r.html", "predictions-per-case"):
                width = float(row["median upper"]) - float(row["median lower"])
                expected = 2 * 1.644854 * float(total.sel(case=row["case"])) ** 0.5
                assert width == pytest.approx(expected, rel=1e-6)


def test_wrong_calls_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    tree = class_tree()
    path = tmp_path / "r.html"
    with pytest.raises(ValueError, match="images holds 3 cases, the tree 12"):
        report_tree(tree, path, images=np.zeros((3, 1, 4, 4)))
    with pytest.raises(ValueError, match=r"'hospital'"):
        report_tree(tree, path, group="hospital")
    with pytest.raises(FileNotFoundError, match="make it first"):
        report_tree(tree, tmp_path / "none" / "r.html")
    bad: Any = xr.Dataset()
    with pytest.raises(TypeError, match="tree"):
        report_tree(bad, path)
    masks = class_tree(2, "c", ("row", "col"))
    with pytest.raises(ValueError, match=r"images of case .* are \(5, 5\), its masks \(4, 4\)"):
        report_tree(masks, path, images=np.zeros((2, 1, 5, 5)))
    assert not path.exists()


def test_other_labelled_cases_give_prediction_sets(tmp_path: Path) -> None:
    tree, other = class_tree(), class_tree(40, "other")
    with few_resamples(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the two trees are drawn from two laws
        path = report_tree(tree, tmp_path / "r.html", calibration=other, alpha=0.2)
        sets = conformal.predict_sets(conformal.calibrate(other, 0.2), tree)
    sets = conformal.fill_empty_sets(sets, tree)
    found = Page(path)
    assert "sets" in found.sections and "(made for 80 %)" in " ".join(found.text)
    expected = {
        str(case): " or ".join(sets["class"].values[sets["prediction_set"].sel(case=case)])
        for case in sets["case"].values
    }
    rows = saved(path, "predictions-per-case")
    assert {row["case"]: row["prediction set"] for row in rows} == expected


def test_what_looks_unlike_the_calibration_cases_is_said_on_the_page(tmp_path: Path) -> None:
    tree, other = class_tree(60), class_tree(60, "other")
    mean = other["posterior"].to_dataset()
    other["posterior"] = xr.DataTree(mean.assign(probs=mean["probs"] * 0.01 + 0.33))
    with few_resamples():
        path = report_tree(tree, tmp_path / "r.html", calibration=other)
    assert "Of the prediction sets: " in " ".join(Page(path).text)


def test_sets_are_made_of_classes_of_other_cases(tmp_path: Path) -> None:
    tree, path = class_tree(), tmp_path / "r.html"
    with pytest.raises(ValueError, match=r"share 12 case"):
        report_tree(tree, path, calibration=tree)
    with pytest.raises(ValueError, match="alpha must be"):
        report_tree(tree, path, calibration=class_tree(40, "other"), alpha=1.0)
    with pytest.raises(ValueError, match="tree is of numbers, and prediction sets"):
        report_tree(number_tree(), path, calibration=class_tree(40, "other"))
    bad: Any = "calibration.nc"
    with pytest.raises(TypeError, match="calibration"):
        report_tree(tree, path, calibration=bad)
    assert not path.exists()


def test_own_sections_and_notes_are_on_the_page(tmp_path: Path) -> None:
    own = Section("own", "My part", data_table("My table", ("a", "b"), [("x", 1.0)]))
    path = report_tree(TREES["other"](), tmp_path / "r.html", sections=[own], notes=["Mine."])
    assert Page(path).sections == ["contents", "own", "provenance"]
    assert "Mine." in Page(path).text
    assert saved(path, "my-table") == [{"a": "x", "b": "1.0"}]


def test_a_spreadsheet_takes_no_name_for_a_formula(tmp_path: Path) -> None:
    names = ("=1+1", "+1", "-1", "@x", "ok")
    own = Section("own", "T", data_table("T", ("name", "value"), [(n, -2.5) for n in names]))
    rows = saved(report_tree(TREES["other"](), tmp_path / "r.html", sections=[own]), "t")
    assert [row["name"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@x", "ok"]
    assert {row["value"] for row in rows} == {"-2.5"}


def test_cells_are_written_for_readers() -> None:
    values = (None, float("nan"), "a", 3, 0.12345, 1e-5, 12345.6, np.float64(0.5), True)
    shown = ["–", "–", "a", "3", "0.123", "1e-05", "1.23e+04", "0.500", "True"]
    assert [written(value) for value in values] == shown


def test_saved_objects_are_those_of_the_analysis() -> None:
    rows = saved(page("boxes"), "objects")
    found = detection.objects(TREES["boxes"]())["objects"].to_dataset()
    assert len(rows) == int(found["num_objects"].sum())
    np.testing.assert_allclose(
        [float(one["p(exists)"]) for one in rows], found["p_exists"].values.ravel(), rtol=1e-6
    )
    lower = [float(one["x_min lower"]) for one in rows]
    np.testing.assert_allclose(lower, found["edge_lower"].values[..., 0].ravel(), rtol=1e-6)


def test_kinds_are_told_from_what_the_tree_holds() -> None:
    expected = {"graders": "masks", "drawn": "masks", "volumes": "masks", "hostile": "masks"}
    assert {kind: kind_of(build()) for kind, build in TREES.items()} == {
        kind: expected.get(kind, kind) for kind in TREES
    }


def test_intervals_are_drawn_over_what_was_observed() -> None:
    truth = np.array([1.0, 2.0, np.nan, 10.0])
    middle = np.arange(4.0)
    (ax,) = predicted_numbers(middle, middle - 1, middle + 1, truth, unit="mm").axes
    assert ax.get_title(loc="right") == "67 % of 3 inside" and ax.get_xlabel() == "Observed [mm]"
    with pytest.raises(ValueError, match="one number per case"):
        predicted_numbers([1.0], [0.0, 1.0], [2.0])
