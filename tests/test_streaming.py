"""Where predict writes: a Zarr store that grows in bounded memory, netCDF, and what they hold."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
import zarr
from posterior_trees import array
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor, nn

from ppl_med import storage
from ppl_med.analysis import scoring, uncertainty
from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal, PointEstimate, fit, predict, predictive
from ppl_med.inference.data_digest import DATA
from ppl_med.inference.prediction import sinks
from ppl_med.models import BayesianClassifier

CASES, CHUNK = 50, 16
MEGABYTE = 2**20


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictive, "CHUNK_CASES", CHUNK)


def classifier(classes: int = 3) -> BayesianClassifier:
    names = [f"class {index}" for index in range(classes)]
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, classes))
    return BayesianClassifier(net, names)


def cases() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    ids = [f"p{index}" if index < 30 else f"a much longer name {index}" for index in range(CASES)]
    return {
        "image": rng.normal(size=(CASES, 2, 4, 4)).astype("float32"),
        "label": rng.integers(0, 3, CASES),
        "id": ids,
        "age": rng.normal(50, 10, CASES),
        "site": ["A"] * 40 + ["a hospital far away"] * 10,
        "treated": rng.random(CASES) < 0.5,
        "mask": rng.integers(0, 4, (CASES, 4, 4)).astype("uint8"),
        "field": rng.normal(size=(CASES, 2, 4, 4)).astype("float32"),
        "flow": rng.normal(size=(CASES, 3, 4, 4)).astype("float32"),
        "spacing": rng.normal(size=(CASES, 2)),
    }


def run(batches: Any = None, model: Any = None, **options: Any) -> xr.DataTree:
    torch.manual_seed(0)
    model = model or classifier()
    guide = MeanFieldNormal(model, init_scale=0.5) if "guide" not in options else None
    options.pop("guide", None)
    batches = batches or Batches(cases(), batch_size=8)
    settings: dict[str, Any] = {"draws": 4, "progress": False, "device": "cpu", **options}
    return predict(model, guide, batches, **settings)


def assert_same(first: xr.DataTree, second: xr.DataTree) -> None:
    assert set(first.groups) == set(second.groups)
    for node in first.subtree:
        other = second[node.path].to_dataset()
        xr.testing.assert_equal(node.to_dataset(), other)
        for name, variable in node.to_dataset().variables.items():
            assert variable.dims == other[name].dims, name
            if variable.dtype.kind not in "UT":
                assert variable.dtype == other[name].dtype, name
    # What a store was made of is noted where it may be resumed.
    attrs = [{**one.attrs, "wall_time_seconds": 0, DATA: ""} for one in (first, second)]
    assert attrs[0] == attrs[1]


# ------------------------------------------------------------------------------------ stores


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_a_store_holds_what_memory_holds(suffix: str, tmp_path: Path) -> None:
    whole = run(prior_draws=3)
    stored = run(prior_draws=3, store=tmp_path / "deep" / f"run{suffix}")
    assert_same(whole, stored)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [f"run{suffix}"]
    loaded = storage.load(tmp_path / "deep" / f"run{suffix}")
    assert isinstance(loaded, xr.DataTree)
    assert_same(whole, loaded)


@pytest.mark.usefixtures("small_chunks")
def test_a_zarr_tree_is_lazy_and_goes_through_the_analyses(tmp_path: Path) -> None:
    whole, stored = run(), run(store=tmp_path / "run.zarr")
    probs = array(stored, "posterior/probs")
    assert probs.chunks is not None
    assert probs.coords["class"].dtype.kind == probs.coords["case"].dtype.kind == "U"
    xr.testing.assert_allclose(scoring.score(stored).load(), scoring.score(whole))
    xr.testing.assert_allclose(uncertainty.entropy(stored).load(), uncertainty.entropy(whole))


@pytest.mark.usefixtures("small_chunks")
def test_an_append_rewrites_no_earlier_chunk(tmp_path: Path, monkeypatch: Any) -> None:
    """A Zarr chunk holds the cases of one append, so that a crash can only hurt the last."""
    written: dict[Path, int] = {}
    append = sinks.ZarrSink.append

    def watched(self: sinks.ZarrSink, chunk: Any) -> None:
        append(self, chunk)
        files = self.partial.rglob("posterior/probs/c/*/*/*/*")
        found = {path: path.stat().st_mtime_ns for path in files}
        assert {path: found[path] for path in written} == written
        assert len(found) == len(written) + 1
        written.update(found)

    monkeypatch.setattr(sinks.ZarrSink, "append", watched)
    run(Batches(cases(), batch_size=6), store=tmp_path / "run.zarr")
    probs: Any = zarr.open_group(tmp_path / "run.zarr", mode="r")["posterior/probs"]
    assert probs.chunks[2] == 18 and len(written) == 3


class Endless:
    """Images made on the way: the data set itself needs no memory."""

    def __init__(self, num_cases: int, batch_size: int) -> None:
        self.num_cases, self.batch_size = num_cases, batch_size

    def __len__(self) -> int:
        return self.num_cases // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(len(self)):
            image = torch.randn(self.batch_size, 2, 4, 4, generator=generator)
            yield {"image": image, "label": torch.zeros(self.batch_size, dtype=torch.long)}


def peak(num_cases: int, store: Path | None, result: Path) -> None:
    """Write the peak memory of a prediction of 100 classes under 16 draws, in bytes."""
    torch.set_num_threads(1)
    model = classifier(100)
    batches = Endless(num_cases, 250)
    predict(model, PointEstimate(model), batches, draws=16, store=store, device="cpu")
    result.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def test_a_growing_store_needs_no_more_memory(tmp_path: Path) -> None:
    """From 1000 to 10000 cases the result grows by 115 MB, the peak by less than 40."""
    found = {}
    for kind in ("zarr", "memory"):
        for number in (1000, 10_000):
            store = tmp_path / f"{number}.zarr" if kind == "zarr" else None
            assert processes.run_apart(peak, number, store, tmp_path / "peak") == 0
            found[kind, number] = int((tmp_path / "peak").read_text())
    growth = {k: found[k, 10_000] - found[k, 1000] for k in ("zarr", "memory")}
    assert growth["zarr"] < 40 * MEGABYTE
    assert growth["memory"] > 100 * MEGABYTE  # or this test could not tell


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_an_existing_store_is_named_before_any_work(
    suffix: str, tmp_path: Path, monkeypatch: Any
) -> None:
    path = tmp_path / f"run{suffix}"
    path.mkdir()
    (path / "keep").write_text("me")
    monkeypatch.setattr(predictive.PosteriorSampler, "kept", None)
    with pytest.raises(FileExistsError, match=f"run{suffix}"):
        run(store=path)
    assert (path / "keep").read_text() == "me"


def test_arguments_about_the_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"store must end in \.nc or \.zarr"):
        run(store=tmp_path / "run.h5")
    for store in (None, tmp_path / "run.nc"):
        with pytest.raises(ValueError, match=r"resume needs store='\*\.zarr'"):
            run(store=store, resume=True)


def test_a_stale_note_of_progress_does_no_harm(tmp_path: Path) -> None:
    note = tmp_path / "run.zarr.partial.json"
    note.write_text("{}")
    with sinks.open_sink(tmp_path / "run.zarr", {}, resume=False):
        assert not note.exists()
    assert_same(run(), run(store=tmp_path / "run.zarr"))
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]


# ------------------------------------------------------------------------------------ metadata


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("store", [None, "run.zarr"])
def test_metadata_of_every_shape_is_kept(store: str | None, tmp_path: Path) -> None:
    given = cases()
    tree = run(store=tmp_path / store if store else None)
    constant = tree["constant_data"].to_dataset().load()
    dims = {
        "age": ("case",),
        "site": ("case",),
        "treated": ("case",),
        "mask": ("case", "row", "col"),
        "field": ("case", "channel", "row", "col"),
        "flow": ("case", "flow_dim_0", "row", "col"),
        "spacing": ("case", "spacing_dim_0"),
    }
    assert {name: variable.dims for name, variable in constant.data_vars.items()} == dims
    for name in dims:
        np.testing.assert_array_equal(constant[name], given[name])
    assert constant["mask"].dtype == np.int64 and constant["treated"].dtype == bool
    assert constant.coords["case"].values.tolist() == given["id"]


def test_volumes_name_their_depth() -> None:
    def model(
        image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        logits = level * image.mean((1, 2, 3, 4))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("label", dist.Bernoulli(logits=logits), obs=label)
        return logits

    image = torch.randn(4, 1, 2, 3, 5)
    batch = {"image": image, "mask": image[:, 0] > 0}
    tree = run([batch], model=model, guide=None)
    assert array(tree, "constant_data/mask").dims == ("case", "depth", "row", "col")
    assert array(tree, "prior/level").dims == ("chain", "draw")


def lists() -> list[dict[str, Any]]:
    return list(Batches(cases(), batch_size=8))


def test_what_no_array_can_hold_is_left_out_and_said() -> None:
    batches = lists()
    for batch in batches:
        size = len(batch["image"])
        batch["report"] = [["finding"] * (1 + index % 2) for index in range(size)]
        batch["scanner"] = [{"field": 1.5}] * size
        batch["nothing"] = None
    with pytest.warns(UserWarning, match=r"\['report', 'scanner'\] are left out") as caught:
        tree = run(batches)
    assert len(caught) == 1
    assert set(tree["constant_data"].data_vars) == set(cases()) - {"image", "label", "id"}


@pytest.mark.parametrize("change", ["missing", "other shape"])
def test_metadata_that_differs_between_batches_is_refused(change: str) -> None:
    batches = lists()
    if change == "missing":
        del batches[3]["spacing"]
    else:
        batches[3]["spacing"] = batches[3]["spacing"][:, :1]
    with pytest.raises(ValueError, match="'spacing' is missing from a batch, or its shape differs"):
        run(batches)


def test_labels_in_some_batches_only_are_refused() -> None:
    batches = lists()
    batches[2]["label"] = None
    with pytest.raises(ValueError, match=r"some batches have 'label' and some have not"):
        run(batches)


def test_positions_stand_for_missing_ids() -> None:
    batches = [{name: b[name] for name in ("image", "label")} for b in lists()]
    tree = run(batches)
    np.testing.assert_array_equal(array(tree, "posterior/probs").coords["case"], np.arange(CASES))
    assert "constant_data" not in tree


# ------------------------------------------------------------------------------------ axes


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("store", [None, "run.zarr"])
def test_a_plate_of_graders_beside_the_cases(
    outer: bool, store: str | None, tmp_path: Path
) -> None:
    """Two plates, the case on either dim: arrays name both, the case first."""

    def model(
        image: Tensor, grade: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        mean = level + image.mean((1, 2, 3))
        dims = (-1, -2) if outer else (-2, -1)
        case = pyro.plate("case", num_cases or len(image), subsample=image, dim=dims[0])
        grader = pyro.plate("grader", 3, dim=dims[1])
        if grade is not None and outer:
            grade = grade.mT
        with case, grader:
            loc = mean if outer else mean[:, None]
            bias = pyro.sample("bias", dist.Normal(loc, 1.0))
            pyro.sample("grade", dist.Normal(bias, 0.1), obs=grade)
        return mean

    def batches(size: int) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(24, 1, 4, 4, generator=generator)
        grade = torch.randn(24, 3, generator=generator)
        parts = [slice(i, i + size) for i in range(0, 24, size)]
        return [{"image": image[part], "grade": grade[part]} for part in parts]

    path = tmp_path / store if store else None
    tree = run(batches(8), model=model, guide=None, store=path).load()
    dims = ("chain", "draw", "case", "grader")
    assert array(tree, "prior/bias").dims == array(tree, "prior/loc").dims == dims
    assert array(tree, "prior_predictive/grade").dims == dims
    assert array(tree, "observed_data/grade").dims == ("case", "grader")
    expected = torch.cat([batch["grade"] for batch in batches(8)])
    np.testing.assert_array_equal(array(tree, "observed_data/grade"), expected)
    spread = array(tree, "prior_predictive/grade") - array(tree, "prior/bias")
    assert 0.05 < float(spread.std()) < 0.2
    other = run(batches(3), model=model, guide=None).load()
    for node in tree.subtree:
        xr.testing.assert_allclose(node.to_dataset(), other[node.path].to_dataset(), rtol=1e-5)


@pytest.mark.parametrize("store", [None, "run.zarr"])
def test_observations_that_a_program_transforms(store: str | None, tmp_path: Path) -> None:
    """The likelihood is of what the site conditions on, in training, validation and prediction."""

    def model(image: Tensor, size: Tensor | None = None, *, num_cases: int | None = None) -> Tensor:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        mean = level + image.mean((1, 2, 3))
        seen = None if size is None else size.log().squeeze(1)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("size", dist.Normal(mean, 0.5), obs=seen)
        return mean

    generator = torch.Generator().manual_seed(0)
    image = torch.randn(20, 1, 4, 4, generator=generator)
    size = torch.rand(20, 1, generator=generator) + 0.5
    batches = [{"image": image[i : i + 5], "size": size[i : i + 5]} for i in range(0, 20, 5)]
    guide = MeanFieldNormal(model, example=batches[0])
    history = fit(
        *(model, guide, batches), epochs=2, validation=batches, progress=False, device="cpu"
    )
    path = tmp_path / store if store else None
    tree = predict(
        *(model, guide, batches), draws=8, store=path, progress=False, device="cpu"
    ).load()
    seen = size.log().squeeze(1)
    np.testing.assert_allclose(array(tree, "observed_data/size"), seen, rtol=1e-6)
    level = array(tree, "posterior/level").values[..., None]
    expected = stats.norm(level + image.mean((1, 2, 3)).numpy(), 0.5).logpdf(seen.numpy())
    np.testing.assert_allclose(array(tree, "log_likelihood/size"), expected, rtol=1e-5)
    heldout = -np.mean(logsumexp(expected[0], axis=0) - np.log(8))
    assert float(history["validation_nll"][-1]) == pytest.approx(heldout, rel=1e-5)
