"""``predict(store=...)``: the same tree on disk, with memory that does not grow with the cases."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from posterior_trees import array
from torch import nn

from ppl_med import storage
from ppl_med.inference import MeanFieldNormal, predict, predictive
from ppl_med.models import BayesianClassifier

CASES = 23


def pair() -> tuple[nn.Module, nn.Module]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    model = BayesianClassifier(net, ["a", "b", "c"])
    return model, MeanFieldNormal(model, init_scale=0.5)


def batches() -> list[dict[str, Any]]:
    """Ids grow longer from batch to batch; masks of the image's size are metadata."""
    image, label = torch.randn(CASES, 1, 4, 4), torch.arange(CASES) % 3
    mask = (image[:, 0] > 0).numpy()
    found = []
    for start in range(0, CASES, 5):
        part = slice(start, min(start + 5, CASES))
        ids = [f"p{n}-" + "x" * n for n in range(part.start, part.stop)]
        hospital = ["north" + "ern" * (start > 9)] * len(ids)
        found.append(
            {
                "image": image[part],
                "label": label[part],
                "id": ids,
                "mask": mask[part],
                "hospital": hospital,
            }
        )
    return found


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_a_stored_tree_is_the_one_in_memory(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictive, "CHUNK_CASES", 8)  # three chunks, the last one smaller
    programs, given = pair(), batches()
    options: dict[str, Any] = {"draws": 4, "prior_draws": 3, "progress": False}
    memory = predict(*programs, given, **options)
    store = tmp_path / f"run{suffix}"
    returned = predict(*programs, given, store=store, **options)
    loaded = storage.load(store)
    assert isinstance(loaded, xr.DataTree)
    for tree in (returned, loaded):
        assert set(tree.children) == set(memory.children)
        for name, node in memory.children.items():
            found = tree[name].to_dataset().load()
            xr.testing.assert_equal(found.astype(node.to_dataset().dtypes), node.to_dataset())
        same = {k: v for k, v in memory.attrs.items() if k != "wall_time_seconds"}
        assert same.items() <= dict(tree.attrs).items()
    ids = [name for batch in given for name in batch["id"]]
    for tree in (memory, returned, loaded):
        assert array(tree, "posterior/probs")["case"].values.tolist() == ids
    assert [path.name for path in tmp_path.iterdir()] == [store.name]
    if suffix == ".zarr":
        with pytest.raises(FileExistsError):
            predict(*programs, given, store=store, **options)


def test_metadata_of_many_axes_land_in_constant_data(tmp_path: Path) -> None:
    given = batches()
    tree = predict(*pair(), given, draws=1, store=tmp_path / "run.zarr", progress=False)
    mask = array(tree, "constant_data/mask")
    assert mask.dims == ("case", "row", "col")
    np.testing.assert_array_equal(mask, np.concatenate([batch["mask"] for batch in given]))
    hospital = array(tree, "constant_data/hospital").values.tolist()
    assert hospital == [name for batch in given for name in batch["hospital"]]


PEAK = """
import resource, sys, tempfile
import torch
from pathlib import Path
from torch import nn
from ppl_med.inference import MeanFieldNormal, predict
from ppl_med.models import BayesianClassifier

torch.set_num_threads(1)

class Cases:
    def __init__(self, number):
        self.number = number
    def __len__(self):
        return self.number // 500
    def __iter__(self):
        for _ in range(len(self)):
            yield {"image": torch.zeros(500, 1, 2, 2), "label": torch.zeros(500, dtype=torch.int64)}

model = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 20)), list(map(str, range(20))))
guide = MeanFieldNormal(model)
with tempfile.TemporaryDirectory() as folder:
    for number in (1000, 10000):
        store = Path(folder, f"{number}.zarr") if sys.argv[1] == "store" else None
        predict(model, guide, Cases(number), draws=50, store=store, progress=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
TOLERANCE = 30.0  # MiB; the probabilities of the 9000 further cases take 69 MiB


def growth(kind: str) -> float:
    """Growth of the peak memory from 1000 to 10 000 cases, in MiB."""
    command = [sys.executable, "-c", PEAK, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    small, large = map(float, done.stdout.split())
    return large - small


def test_memory_is_bounded_by_the_store() -> None:
    assert growth("store") < TOLERANCE
    assert growth("memory") > TOLERANCE  # the measurement sees what it is about
