"""The HTML report: one file, nothing fetched, user text escaped, an earlier report never lost."""

import base64
import errno
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text

import ppl_med
from ppl_med.analysis import conformal, scoring
from ppl_med.plots import theme
from ppl_med.plots.case_cards import cases as cases_figure
from ppl_med.plots.pictures import in_own_units
from ppl_med.plots.report import Section, paragraph, picture, table, write_report
from ppl_med.plots.report.summary import score_table
from ppl_med.plots.report.writer import _positions

NUM_CASES = 12
IDS = [f"P{i:02d}" for i in range(NUM_CASES)]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Parses a report; raises where tags do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], "tags left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def sections(self) -> list[str | None]:
        return [attrs["id"] for attrs in self.all("section")]


def make_tree(classes: tuple[str, str] = ("benign", "malignant")) -> xr.DataTree:
    rng = np.random.default_rng(0)
    first = rng.beta(2, 2, (2, 8, NUM_CASES))
    posterior = xr.Dataset(
        {"probs": (("chain", "draw", "case", "class"), np.stack([first, 1 - first], -1))},
        coords={"chain": [0, 1], "draw": np.arange(8), "case": IDS, "class": list(classes)},
    )
    label = xr.Dataset({"label": ("case", rng.integers(0, 2, NUM_CASES))}, coords={"case": IDS})
    tree = xr.DataTree.from_dict({"/posterior": posterior, "/observed_data": label})
    tree.attrs.update(
        model="WeightedNet", guide="MeanFieldNormal", seed=7, versions='{"torch": "2.15.0"}'
    )
    return tree


def make_everything() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    tree = make_tree()
    member = tree["posterior"]["probs"].mean(("chain", "draw")) > 0.45
    step = np.arange(30)
    curve = 1 + np.exp(-step / 5)
    maps = xr.DataArray(
        rng.normal(size=(2, 1, 10, 10)),
        dims=("case", "channel", "row", "col"),
        coords={"case": [IDS[5], IDS[2]]},
    )
    sizes = (("fraction", "seed"), rng.uniform(0.01, 0.1, (3, 2)))
    return {
        "tree": tree,
        "history": xr.Dataset(
            {
                "elbo": ("step", -2 * curve),
                "nll": ("step", curve),
                "kl": ("step", curve),
                "kl_weight": ("step", np.ones(30)),
            },
            coords={"step": step, "epoch": ("step", step // 10)},
        ),
        "images": rng.normal(size=(NUM_CASES, 1, 10, 10)),
        "prediction_sets": xr.Dataset(
            {
                "prediction_set": member,
                "coverage": 0.917,
                "coverage_lower": 0.75,
                "coverage_upper": 1.0,
            },
            attrs={"alpha": 0.1},
        ),
        "attribution": xr.Dataset(
            {
                "mean": maps,
                "sd": abs(maps),
                "mcse": abs(maps) / 4,
                "probability_positive": 0.5 + 0 * maps,
            }
        ),
        "mask": np.ones((NUM_CASES, 10, 10)).cumsum(1) > 5,
        "reliability": scoring.reliability(tree),
        "scores": scoring.score(tree),
        "data_size": xr.Dataset(
            {"aleatoric": sizes, "epistemic": sizes}, coords={"fraction": [0.1, 0.5, 1.0]}
        ),
        "notes": ["A note."],
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, title="All parts", **make_everything())


def test_report_has_every_part(whole: Path) -> None:
    assert Page(whole).sections == [
        "uncertainty",
        "cases",
        "sets",
        "reliability",
        "attribution",
        "data-size",
        "training",
        "scores",
        "provenance",
    ]


def test_the_old_name_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="report is now ppl_med.plots.report.write_report"):
        from ppl_med.plots.report import report
    assert report is write_report


def test_report_fetches_nothing(whole: Path) -> None:
    text = whole.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text)
    page = Page(whole)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        target = attrs.get("href") or attrs.get("src") or "#"
        assert target.startswith(("#", "data:image/png;base64,", "data:text/csv;charset=utf-8;"))
    policy = page.all("meta")[3]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_report_pictures_are_png_with_alt_text(whole: Path) -> None:
    pictures = Page(whole).all("img")
    assert len(pictures) == 6
    for image in pictures:
        data = base64.b64decode(str(image["src"]).split(",", 1)[1], validate=True)
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(str(image["alt"])) > 40


def test_report_links_lead_to_sections(whole: Path) -> None:
    page = Page(whole)
    links = [str(link["href"]) for link in page.all("a") if "download" not in link]
    assert [link.removeprefix("#") for link in links] == page.sections


def test_report_explains_every_part_in_one_sentence(whole: Path) -> None:
    text = whole.read_text(encoding="utf-8")
    for section in re.findall(r"<section.*?</section>", text, flags=re.S):
        sentence = re.search(r"</h2><p>(.*?)</p>", section)
        assert sentence and sentence[1].count(".") == 1 and sentence[1].endswith(".")


def test_report_shows_scores_with_error_and_unit(whole: Path) -> None:
    scores = scoring.score(make_tree())
    text = Page(whole).text
    for name, unit in (("accuracy", "proportion"), ("nll", "nats per case")):
        assert f"{float(scores[name]):.3f}" in text
        assert f"± {float(scores[f'{name}_se']):.3f} s.e." in text
        assert unit in text
    low, high = np.quantile(scores["brier_per_draw"], [0.05, 0.95])
    assert f"{low:.3f} to {high:.3f}" in text


def test_scores_of_masks_are_of_a_pixel() -> None:
    masks = scoring.score(make_tree())
    masks["nll"].attrs["per"] = "pixel"
    assert "nats per pixel" in score_table(masks) and "nats per case" not in score_table(masks)
    assert "share of pixels" in score_table(masks) and "share of cases" not in score_table(masks)


def test_report_shows_prediction_sets_and_provenance(whole: Path) -> None:
    text = " ".join(Page(whole).text)
    size = make_everything()["prediction_sets"]["prediction_set"].sum("class").to_numpy()
    ones = int((size == 1).sum())
    assert f"{ones} cases, {100 * ones / NUM_CASES:.0f} %" in text
    assert "The true class is in the set for 91.7 % of the cases (made for 90 %)" in text
    for item in ("WeightedNet", "MeanFieldNormal", "seed 7", "versions: torch 2.15.0"):
        assert item in text
    assert "8 in each of 2 chain(s)" in text and "16 posterior draws" in text


def test_report_leaves_out_what_is_none(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html", title="Small", tree=make_tree()))
    assert page.sections == ["uncertainty", "provenance"]
    regression = xr.DataTree.from_dict({"/posterior": xr.Dataset({"loc": ("case", [1.0, 2.0])})})
    page = Page(write_report(tmp_path / "r.html", title="Small", tree=regression))
    assert page.sections == ["provenance"]


def test_report_escapes_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> & \"$a$\""
    tree = make_tree(classes=(evil, "b"))
    tree.attrs["model"] = evil
    path = write_report(
        tmp_path / "r.html",
        title=evil,
        tree=tree,
        images=np.zeros((NUM_CASES, 3, 6, 6)),
        scores=scoring.score(tree),
        reliability={evil: scoring.reliability(tree)},
        notes=[evil],
    )
    page = Page(path)
    assert not page.all("script")
    assert page.text.count(evil) >= 4  # title, heading, note, class; shown as typed
    assert any(evil in str(image["alt"]) for image in page.all("img"))


def test_every_piece_escapes_what_it_is_given(tmp_path: Path) -> None:
    evil = "</p></td></style></main><script>'\"x&</script>{{ 7 * 7 }}{% raw %}"
    body = paragraph(evil) + table((evil, "b"), [(evil, evil)], kind=evil)
    body += picture(Figure(figsize=(1, 1)), evil)
    tree = make_tree()
    tree.attrs.update({evil: evil, "settings": json.dumps({evil: evil})})
    path = write_report(
        tmp_path / "r.html",
        title=evil,
        tree=tree,
        sections=[Section("evil", evil, body)],
        data_size=make_everything()["data_size"].expand_dims(method=[evil]),
    )
    page = Page(path)  # raises where a tag closes another
    assert not page.all("script") and len(page.all("style")) == 1
    assert page.text.count(evil) == 11
    assert evil in {attrs["class"] for attrs in page.all("table") if "class" in attrs}
    assert evil in {image["alt"] for image in page.all("img")}


def test_report_outlines_the_mask_of_the_explained_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_everything()
    seen: dict[str, np.ndarray] = {}
    module = sys.modules["ppl_med.plots.report.writer"]
    draw = module.attribution_figure

    def record(images: np.ndarray, maps: xr.Dataset, mask: np.ndarray) -> object:
        seen.update(images=images, mask=mask)
        return draw(images, maps, mask)

    monkeypatch.setattr(module, "attribution_figure", record)
    write_report(tmp_path / "r.html", title="Order", **inputs)
    np.testing.assert_array_equal(seen["images"], inputs["images"][[5, 2]])
    np.testing.assert_array_equal(seen["mask"], inputs["mask"][[5, 2]])


def test_maps_of_masks_stand_beside_the_images_of_their_cases() -> None:
    space = ("row", "col")
    masks = xr.DataArray(np.zeros((1, 2, 5, 4, 4)), {"case": list("abcde")},
                         ("chain", "draw", "case", *space), "mask")  # fmt: skip
    tree = xr.DataTree.from_dict({"/posterior": masks.to_dataset()})
    maps = xr.Dataset({"mean": (("case", *space), np.zeros((2, 4, 4)))}, {"case": ["e", "d"]})
    assert _positions(tree, maps).tolist() == [4, 3]
    with pytest.raises(ValueError, match=r"cases that the tree lacks .first: 'z'"):
        _positions(tree, maps.assign_coords(case=["a", "z"]))


def test_report_rejects_what_does_not_fit(tmp_path: Path) -> None:
    inputs = make_everything()
    path = tmp_path / "r.html"
    strangers = inputs["attribution"].assign_coords(case=[0, 1])
    bad: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "attribution needs images", {"images": None}),
        (ValueError, "attribution has cases that the tree lacks", {"attribution": strangers}),
        (ValueError, "title must be a text", {"title": " "}),
        (TypeError, "notes must be a sequence", {"notes": "one string"}),
        (TypeError, "tree", {"tree": xr.Dataset()}),
        (ValueError, "history has no", {"history": inputs["history"].drop_vars("kl")}),
    ]
    for error, message, change in bad:
        with pytest.raises(error, match=message):
            write_report(path, **({"title": "Bad", **inputs} | change))
    with pytest.raises(FileNotFoundError, match="make it first"):
        write_report(tmp_path / "none" / "r.html", title="Bad", tree=inputs["tree"])
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_report(tmp_path, title="Bad", tree=inputs["tree"])
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_the_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.html"
    path.write_text("earlier")

    def no_space(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"report .* disk is full .* MB are needed") as caught:
        write_report(path, title="Full", tree=make_tree())
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_write_cut_short_by_the_system_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("earlier")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from ppl_med.storage import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_text(Path(sys.argv[1]), 'x' * 100_000)\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "OSError"
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_report_replaces_an_earlier_one_with_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("earlier")
    usual = tmp_path / "usual"
    usual.touch()
    write_report(path, title="Later", tree=make_tree())
    assert "Later" in Page(path).text
    assert path.stat().st_mode == usual.stat().st_mode


def names_in(figure: Figure) -> str:
    """Every text of a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_smoke_reports_are_stamped(tmp_path: Path) -> None:
    for smoke in (False, True):
        page = Page(write_report(tmp_path / "r.html", title="T", tree=make_tree(), smoke=smoke))
        assert ("Smoke run." in page.text) is smoke


def test_empty_sets_hold_the_most_probable_class_unless_asked(tmp_path: Path) -> None:
    tree = make_tree()
    member: Any = tree["posterior"]["probs"].mean(("chain", "draw")) > 0.45
    member[{"case": slice(3)}] = False
    observed = np.asarray(tree["observed_data/label"])
    covered = np.take_along_axis(member.values, observed[:, None], 1)[:, 0]
    sets = xr.Dataset(
        {"prediction_set": member, "covered": ("case", covered), "coverage": covered.mean()}
    )
    filled = conformal.fill_empty_sets(sets, tree)
    assert filled.attrs["filled"] == 3
    assert (filled["prediction_set"].sum("class") >= 1).all()
    best = tree["posterior"]["probs"].mean(("chain", "draw")).argmax("class").values
    assert float(filled["coverage"]) == (covered.sum() + (best == observed)[:3].sum()) / NUM_CASES
    for asked in (False, True):
        path = write_report(
            tmp_path / "r.html", title="T", tree=tree, prediction_sets=sets, empty_sets=asked
        )
        text = " ".join(Page(path).text)
        assert ("3 sets are empty" in text) is asked
        assert ("no class" in Page(path).text) is asked
        assert ("In 3 cases no class is likely enough" in text) is not asked


def test_one_network_tells_no_epistemic_part(tmp_path: Path) -> None:
    tree = make_tree()
    pooled = tree["posterior"]["probs"].mean(("chain", "draw")).expand_dims(chain=1, draw=1)
    tree["posterior"] = xr.DataTree(pooled.to_dataset(name="probs"))
    images = make_everything()["images"]
    text = " ".join(Page(write_report(tmp_path / "r.html", title="T", tree=tree)).text)
    assert "is no sign of certainty" in text
    shown = names_in(cases_figure(images, tree))
    assert "epistemic part unknown" in shown and "epistemic 0" not in shown


def test_names_that_no_font_draws_stand_below_the_picture() -> None:
    figure = Figure()
    figure.text(0, 0, "case \U0001331c\U0001331d 7")  # hieroglyphs
    figure.text(0, 0.5, "ordinary, with \u00b1 and \u00e9")
    html = picture(figure, "alt")
    assert "[1] stands for \U0001331c\U0001331d." in html
    assert "case [1] 7" in names_in(figure) and "\u00b1" in names_in(figure)


def test_normalised_images_are_shown_in_their_own_units() -> None:
    image = np.random.default_rng(0).uniform(size=(2, 3, 4, 4))
    loc, scale = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normal = (image - np.reshape(loc, (3, 1, 1))) / np.reshape(scale, (3, 1, 1))
    np.testing.assert_allclose(in_own_units(normal, loc, scale), image)
    with pytest.raises(ValueError, match="loc must be one number, or 3"):
        in_own_units(normal, [0.5, 0.5], 1.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        in_own_units(normal, 0.0, 0.0)


def test_provenance_says_when_by_what_and_after_how_long(tmp_path: Path) -> None:
    everything = make_everything()
    path = write_report(
        tmp_path / "r.html", title="T", tree=everything["tree"], history=everything["history"]
    )
    text = " ".join(Page(path).text)
    assert f"by ppl_med {ppl_med.__version__}" in text and "3 epochs, 30 steps" in text
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", text)


def test_long_names_keep_both_ends() -> None:
    names = [f"Parasitized/cell_images_of_patient_{number:04d}.png" for number in range(20)]
    shown = [theme.plain(name, 18) for name in names]
    assert len(set(shown)) == 20 and all(len(one) <= 18 for one in shown)
