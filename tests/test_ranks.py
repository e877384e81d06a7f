"""Training on several processes gives what one process gives on the same batches."""

from pathlib import Path

import pytest
import rank_runs
import torch
from killed_runs import differences
from rank_runs import SCENARIOS, run_ranks

from ppl_med.inference import process_group

SIZES = {2: [*SCENARIOS], 3: ["mean_field", "everything", "crops", "unused"]}


def test_a_process_on_its_own_waits_for_nobody():
    assert (process_group.rank(), process_group.num_ranks()) == (0, 1)
    process_group.barrier()
    assert process_group.from_rank_0({"a": 1}) == {"a": 1}
    assert process_group.of_all_ranks("x") == ["x"]
    assert process_group.on_rank_0(lambda: 3) == 3


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    rank_runs.same_noise([*SCENARIOS], folder)
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What two and three ranks leave, of the runs that are not cut alike by both."""
    found = {}
    for size, names in SIZES.items():
        found[size] = tmp_path_factory.mktemp(f"ranks{size}")
        assert run_ranks(size, rank_runs.same_noise, names, found[size]) == [0] * size
    return found


@pytest.mark.parametrize(("size", "name"), [(s, n) for s, names in SIZES.items() for n in names])
def test_ranks_take_the_steps_of_one_process(
    size: int, name: str, one: Path, several: dict[int, Path]
) -> None:
    expected = torch.load(one / f"{name}-0.pt", weights_only=False)
    files = [several[size] / f"{name}-{rank}.pt" for rank in range(size)]
    first, *others = [torch.load(file, weights_only=False) for file in files]
    assert first["attrs"].pop("ranks") == size
    tolerance = 1e-6 if name == "crops" else 1e-9  # weights of crops are float32
    for part in ("history", "state", "attrs"):
        assert not differences(expected[part], first[part], tolerance=tolerance)
    for other in others:
        assert not differences(first["state"], other["state"])
        assert not differences(first["history"], other["history"])
