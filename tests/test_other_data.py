"""A resumed run notices that it was given other data of the same sizes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ppl_med.data import Batches
from ppl_med.data.fresh import FreshBatches
from ppl_med.inference import PointEstimate, data_digest, fit, predict
from ppl_med.inference.data_digest import data_digest as digest
from ppl_med.models import BayesianClassifier

CASES = 10
Data = dict[str, Any]


def arrays(**changed: Any) -> Data:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(CASES, 1, 2, 2)).astype("float32")
    label = np.arange(CASES) % 2
    return {"image": image, "label": label, "id": np.arange(CASES), "age": np.ones(CASES)} | changed


def other(name: str) -> Data:
    """The arrays with one entry of one of them changed, at the end."""
    data = arrays()
    data[name] = data[name].copy()
    data[name][-1] = data[name][-1] + 1 if name != "label" else 0
    return data


class Items(Dataset):
    def __init__(self, data: Data, noise: str = "") -> None:
        self.data, self.noise = data, noise
        self.own = np.random.default_rng(0)

    def __len__(self) -> int:
        return CASES

    def __getitem__(self, index: int) -> Data:
        item = {n: torch.as_tensor(self.data[n][index]) for n in ("image", "label")}
        if self.noise == "global":
            item["image"] = item["image"] + torch.rand(())
        elif self.noise == "own":
            item["image"] = item["image"] + float(self.own.normal())
        return item


class Stream(IterableDataset):
    def __init__(self, data: Data) -> None:
        self.items = Items(data)

    def __len__(self) -> int:
        return CASES

    def __iter__(self) -> Iterator[Data]:
        return iter([self.items[index] for index in reversed(range(CASES))])


class Own:
    num_cases = CASES

    def __init__(self, data: Data) -> None:
        self.batches = Batches(data, batch_size=5)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Data]:
        return iter([*self.batches][::-1])


KINDS: dict[str, Any] = {
    "arrays": lambda data, **given: Batches(data, **{"batch_size": 5, **given}),
    "list": lambda data, **given: [*Batches(data, **{"batch_size": 5, **given})],
    "loader": lambda data, **given: DataLoader(Items(data), **{"batch_size": 5, **given}),
}
NAMES = ("image", "label")


@pytest.mark.parametrize("kind", KINDS)
def test_what_counts_is_the_data_and_not_the_batches(kind: str) -> None:
    make = KINDS[kind]
    found = digest(make(arrays()), NAMES)
    assert digest(make(arrays(), batch_size=3), NAMES) == found
    if kind != "list":
        assert digest(make(arrays(), shuffle=True), NAMES) == found
    for name in NAMES:
        assert digest(make(other(name)), NAMES) != found
    assert digest(make(other("age")), NAMES) == found  # the model does not take it
    double = arrays(image=arrays()["image"].astype("float64"))
    if kind == "loader":
        assert digest(make(double), NAMES) != found


def test_other_loaders_are_known_by_their_first_case() -> None:
    makers: list[Any] = [Own, lambda data: DataLoader(Stream(data), batch_size=5)]
    for make in makers:
        found = digest(make(arrays()), NAMES)
        assert digest(make(arrays()), NAMES) == found
        reversed_data = {name: values[::-1].copy() for name, values in other("label").items()}
        assert digest(make(reversed_data), NAMES) != found
    fresh = [FreshBatches(lambda n, seed: arrays(), batch_size=CASES, seed=s) for s in (0, 0)]
    assert len({digest(one, NAMES) for one in fresh}) == 1


@pytest.mark.parametrize("noise", ["global", "own"])
def test_augmentation_in_the_data_set_is_no_other_data(noise: str) -> None:
    loaders = [DataLoader(Items(arrays(), noise), batch_size=5) for _ in range(2)]
    loaders[1].dataset.own.normal(size=7)  # type: ignore[attr-defined]
    assert len({digest(loader, NAMES) for loader in loaders}) == 1
    relabelled = DataLoader(Items(other("label"), noise), batch_size=5)
    assert digest(relabelled, NAMES) != digest(loaders[0], NAMES)


def test_generators_are_left_as_they_were() -> None:
    own = torch.Generator().manual_seed(3)
    loader = DataLoader(Items(arrays(), "global"), batch_size=5, shuffle=True, generator=own)
    before = torch.get_rng_state(), own.get_state()
    digest(loader, NAMES)
    assert torch.equal(before[0], torch.get_rng_state()) and torch.equal(before[1], own.get_state())


def test_of_large_arrays_evenly_spaced_cases_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_digest, "MOST_BYTES", 4 * 16)  # the first, the last, two between
    found = digest(Batches(arrays()), NAMES)
    assert digest(Batches(other("image")), NAMES) != found
    hidden = arrays()
    hidden["image"][1] += 1
    assert digest(Batches(hidden), NAMES) == found
    assert digest(Batches(arrays(), scale=2.0), NAMES) != found


# --- in fit and predict


def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ["no", "yes"])
    return model, PointEstimate(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_fit_resumes_with_the_same_data_only(kind: str, name: str, tmp_path: Path) -> None:
    options: Data = {"progress": False, "checkpoint": tmp_path / "run.pt", "resume": True}
    fit(*pair(), KINDS[kind](arrays()), **options)
    fit(*pair(), KINDS[kind](arrays()), **options)
    with pytest.raises(ValueError, match=r"other data.*run\.pt.*another checkpoint"):
        fit(*pair(), KINDS[kind](other(name)), **options)


class Stop(RuntimeError):
    pass


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_predict_resumes_with_the_same_data_only(
    complete: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_med.inference.predictive.CHUNK_CASES", 5)
    options: Data = {"draws": 2, "progress": False, "store": tmp_path / "run.zarr"}
    append = "ppl_med.inference.prediction.zarr_sink.ZarrSink.append"
    with monkeypatch.context() as patch, contextlib.suppress(Stop):
        if not complete:
            patch.setattr(append, stopping_after(1))
        predict(*pair(), Batches(arrays(), batch_size=5), **options)
    with pytest.raises(ValueError, match="was made with another data_sha256"):
        predict(*pair(), Batches(other(name), batch_size=5), resume=True, **options)
    tree = predict(*pair(), Batches(arrays(), batch_size=2), resume=True, **options)
    assert tree["posterior"].sizes["case"] == CASES


def stopping_after(chunks: int) -> Any:
    from ppl_med.inference.prediction.zarr_sink import ZarrSink

    append, left = ZarrSink.append, [chunks]

    def stopping(self: Any, chunk: Any) -> None:
        if left[0] == 0:
            raise Stop
        left[0] -= 1
        append(self, chunk)

    return stopping
