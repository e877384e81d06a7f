"""What processes that train together decide, refuse and leave behind when one of them dies."""

import contextlib
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from killed_runs import differences
from rank_runs import (
    Found,
    at_step,
    cases,
    classifier,
    noisy,
    rank,
    run_ranks,
    send,
    trained,
    whole,
)
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ppl_med.data import Batches
from ppl_med.inference import (
    SGLD,
    Ensemble,
    Laplace,
    MeanFieldNormal,
    PointEstimate,
    active_learn,
    checkpoint,
    predict,
    process_group,
    sample,
)
from ppl_med.models import DUQClassifier
from ppl_med.weights import Normal

STEPS = 8  # of two epochs


def exact(**options: Any) -> dict[str, Any]:
    model = classifier()
    return {"model": model, "guide": PointEstimate(model).double(), "batches": whole()} | options


def members(**options: Any) -> dict[str, Any]:
    model = classifier()
    guide = Ensemble(model, lambda own: MeanFieldNormal(own).double(), members=3)
    return {"model": model, "guide": guide, "batches": whole(), "average": 0.9} | options


class Cases(Dataset):
    def __init__(self, bad: int | None = None) -> None:
        self.arrays, self.bad = cases(40), bad

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.bad:
            raise OSError("a damaged file")
        image = torch.tensor(self.arrays["image"][index]).double()
        return {"image": image, "label": int(self.arrays["label"][index])}


def loader(bad: int | None = None) -> DataLoader:
    data = Cases(bad)
    return DataLoader(data, 5, sampler=DistributedSampler(data, shuffle=False))


def in_order() -> Batches:
    def in_double(batch: dict[str, Any], _: torch.Generator) -> dict[str, Any]:
        return {**batch, "image": batch["image"].double()}

    return Batches(cases(40), batch_size=10, transform=in_double)


# --- what ranks do; each is run on both, and its result kept by rank


def uninterrupted(folder: Path) -> Found:
    return trained(noisy())


def interrupted(folder: Path) -> Found:
    """Ctrl-C at one rank stops both."""
    path = folder / "interrupted.pt"
    with pytest.raises(KeyboardInterrupt, match="resume=True"), at_step(3, send(signal.SIGINT, 1)):
        trained(noisy(), checkpoint=path)
    return trained(noisy(), checkpoint=path, resume=True)


def saved_at_every_step(folder: Path) -> Found:
    return trained(noisy(), checkpoint=folder / "often.pt", checkpoint_every=0)


def begun(folder: Path) -> Found:
    return trained(exact(), epochs=1, checkpoint=folder / "begun.pt")


def continued(folder: Path) -> Found:
    return trained(exact(), checkpoint=folder / "alone.pt", resume=True)


def told(folder: Path) -> Found:
    """A callback is called on rank 0 alone, and stops both."""
    epochs: list[int] = []

    def stop(history: xr.Dataset) -> bool:
        epochs.append(int(history.attrs["epoch"]))
        return len(epochs) == 2

    found = trained(exact(), epochs=5, callbacks=[stop])
    assert epochs == ([1, 2] if rank() == 0 else [])
    return found


def failing_callback(folder: Path) -> Found:
    def fail(history: xr.Dataset) -> None:
        raise KeyError("a callback's fault")

    with contextlib.ExitStack() as stack:
        if rank() == 0:
            stack.enter_context(pytest.warns(UserWarning, match="a callback's fault"))
        return trained(exact(), callbacks=[fail])


def apart(folder: Path) -> Found:
    found = trained(members(), checkpoint=folder / "apart.pt", checkpoint_every=0)
    assert sorted(path.name for path in folder.glob("*apart.pt*")) == ["apart.pt"]
    return found


def apart_again(folder: Path) -> Found:
    """What is trained is only read, and what was killed on the way is cleared away."""
    path = folder / "again.pt"
    first = trained(members(), checkpoint=path)
    (folder / f"..again.pt.rank{rank()}of2.lock").touch()
    found = trained(members(), checkpoint=path, resume=True)
    assert not differences(first, found)
    process_group.barrier()
    assert sorted(path.name for path in folder.glob("*again.pt*")) == ["again.pt"]
    return found


def apart_interrupted(folder: Path) -> Found:
    """Each member goes on from where its rank stood, and further than it was asked for first."""
    path = folder / "parts.pt"
    with pytest.raises(KeyboardInterrupt), at_step(6 - 3 * rank(), signal_self):
        trained(members(), checkpoint=path, epochs=1)
    with pytest.raises(FileExistsError, match=r"part .*parts.pt.rank\dof2"):
        trained(members(), checkpoint=path)
    return trained(members(), checkpoint=path, resume=True)


def signal_self() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def distributed_sampler(folder: Path) -> Found:
    return trained(exact(batches=loader()))


def own_statistics(folder: Path) -> Found:
    """Statistics of norm layers under the average are those of rank 0, as during training."""
    model = classifier(normed)
    guide = PointEstimate(model).double()
    found = {"model": model, "guide": guide, "batches": loader(), "average": 0.5}
    with told_at_rank_0("BatchNorm2d takes its statistics"):
        return trained(found, validation=in_order())


def another_fails(folder: Path) -> Found:
    """What was learned until then is kept."""
    path = folder / "failed.pt"
    error, text = ((OSError, "damaged"), (RuntimeError, "another process"))[rank() == 0]
    with pytest.raises(error, match=text):
        trained(exact(batches=loader(31)), checkpoint=path, num_cases=40)
    content = checkpoint.read(path)
    assert content["members"][0]["standing"]["batch"] == 3
    return {"state": content["states"][0]}


def refusals(folder: Path) -> Found:
    for expected, options in REFUSED.items():
        with pytest.raises(ValueError, match=expected):
            trained(options())
    with pytest.raises(ValueError, match=r"learning_rate is 0\.1 on rank 0 and 0\.2 on rank 1"):
        trained(exact(), learning_rate=0.1 * (1 + rank()))
    with pytest.raises(ValueError, match=r"checkpoint is .*rank 0"):
        trained(exact(), checkpoint=folder / "first.pt" if rank() == 0 else None)
    path = folder / "exists.pt"
    if rank() == 0:
        path.write_text("")
    with pytest.raises(FileExistsError):
        trained(exact(), checkpoint=path)
    return {}


def for_one_process(folder: Path) -> Found:
    """What each process would do by itself, into one file; rank 0 may sample for all."""
    model = classifier(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2))).float()
    batches, path = Batches(cases(), batch_size=23), folder / "chains.pt"
    with pytest.raises(ValueError, match="active_learn buys labels in one process, not in 2"):
        active_learn(lambda: (model, PointEstimate(model)), batches, [], budget=9, test=batches)
    refused = pytest.raises(ValueError, match="checkpoint: each of 2 processes samples all chains")
    with refused if rank() else contextlib.nullcontext():
        sample(model, batches, SGLD(1e-5), draws=1, warm_up=1, checkpoint=path, progress=False)
    return {}


def batch_norm(folder: Path) -> Found:
    model = classifier(normed)
    options = {"model": model, "guide": PointEstimate(model).double(), "batches": whole()}
    with told_at_rank_0("BatchNorm2d takes its statistics"):
        return trained(options, validation=whole())


def warned_once(folder: Path) -> Found:
    """Of a guide that is trained again and far from its prior."""
    model = classifier(prior=Normal(scale=1e-4))
    guide = MeanFieldNormal(model, estimator="shared").double()
    options = {"model": model, "guide": guide, "batches": whole()}
    with told_at_rank_0("the KL is"):
        trained(options, epochs=1)
    with told_at_rank_0("a second time with seed=0"), told_at_rank_0("the KL is"):
        return trained(options, epochs=1)


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2))


def told_at_rank_0(message: str) -> contextlib.AbstractContextManager[Any]:
    """Warnings are errors at the other."""
    warned = pytest.warns(UserWarning, match=message)
    return warned if rank() == 0 else contextlib.nullcontext()


def alone_again(folder: Path) -> Found:
    """A group that is destroyed is over: nobody joins it again, or waits for the others."""
    distributed.destroy_process_group()
    options = exact()
    found = trained(options)
    tree = predict(options["model"], options["guide"], in_order(), draws=1, progress=False)
    assert tree["posterior/probs"].sizes["case"] == 40
    return found


def free(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
    weight = pyro.param("free_weight", torch.zeros(64, 2, dtype=torch.float64))
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("label", dist.Categorical(logits=image.flatten(1) @ weight), obs=label)


def nothing(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
    pass


def curved() -> dict[str, Any]:
    model = classifier()
    guide = Laplace(model, structure="diag").double()
    return {"model": model, "guide": guide, "batches": loader()}


def centroids() -> dict[str, Any]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    model = DUQClassifier(net, ["no", "yes"], 4, batch_size=15)
    return {"model": model, "guide": PointEstimate(model), "batches": Batches(cases())}


REFUSED: dict[str, Callable[[], dict[str, Any]]] = {
    r"1 case\(s\), too few for a part on each of 2": lambda: exact(batches=whole().first(1)),
    "cannot tell whose turn": lambda: exact(batches=DataLoader(Cases(), 5, shuffle=True)),
    "leave out its num_replicas": lambda: exact(
        batches=DataLoader(Cases(), 5, sampler=DistributedSampler(Cases(), 3, 0))
    ),
    "DUQClassifier follows every step": centroids,
    "pyro.param keeps 'free_weight'": lambda: exact(model=free, guide=nothing),
    "Laplace learns from one more pass": curved,
    "a DistributedSampler, but each process trains members": lambda: members(batches=loader()),
    "callbacks are told of one member": lambda: members(callbacks=[print]),
    "generator of their own": lambda: members(
        batches=DataLoader(Cases(), 5, shuffle=True, generator=torch.Generator())
    ),
}
CHECKS: list[Callable[[Path], Found]] = [
    *(uninterrupted, interrupted, saved_at_every_step, begun, continued, told, failing_callback),
    *(apart, apart_again, apart_interrupted, distributed_sampler, own_statistics, another_fails),
    *(for_one_process, refusals, batch_norm, warned_once),
    alone_again,  # the last one
]


def run_checks(folder: Path) -> None:
    # A process that was started in the background may ignore it, and its children after it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    own = os.environ["RANK"]
    for check in CHECKS:
        try:
            torch.save(check(folder), folder / f"{check.__name__}-{own}.result")
        except BaseException:
            (folder / f"{check.__name__}-{own}.error").write_text(traceback.format_exc())
            raise


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decide")
    trained(exact(), epochs=1, checkpoint=folder / "alone.pt")
    run_ranks(2, run_checks, folder)
    return folder


def load(results: Path, check: Callable[[Path], Found]) -> Found:
    """What both ranks found, equal bit for bit."""
    for file in results.glob(f"{check.__name__}-*.error"):
        pytest.fail(file.read_text())
    files = [results / f"{check.__name__}-{own}.result" for own in range(2)]
    found = [torch.load(file, weights_only=False) for file in files]
    assert not differences(found[0], found[1])
    return found[0]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_both_ranks_end_alike(check: Callable[[Path], Found], results: Path) -> None:
    load(results, check)


def test_ctrl_c_at_one_rank_stops_both_and_they_go_on(results: Path) -> None:
    expected = load(results, uninterrupted)
    assert expected["attrs"]["ranks"] == 2
    for check in (interrupted, saved_at_every_step):
        assert not differences(expected, load(results, check))


def test_a_run_goes_on_with_another_number_of_processes(results: Path) -> None:
    """From one to two, and from two to one."""
    expected = trained(exact())
    continued_alone = trained(exact(), checkpoint=results / "begun.pt", resume=True)
    for part in ("state", "history"):
        assert not differences(expected[part], load(results, continued)[part], tolerance=1e-9)
        assert not differences(expected[part], continued_alone[part], tolerance=1e-9)


def test_a_callback_stops_all(results: Path) -> None:
    history = load(results, told)["history"]
    assert len(history["nll"]) == STEPS and "stop" in str(history["stopped_by"])


OF_MEMBERS = {apart: "apart.pt", apart_again: "again.pt", apart_interrupted: "parts.pt"}


def test_members_of_an_ensemble_are_those_of_one_process(results: Path, tmp_path: Path) -> None:
    expected = trained(members(), checkpoint=tmp_path / "one.pt")
    for check, name in OF_MEMBERS.items():
        found = load(results, check)
        assert found["attrs"].pop("ranks") == 2
        assert not differences(expected, found)
        files = (checkpoint.read(tmp_path / "one.pt"), checkpoint.read(results / name))
        assert not [d for d in differences(*files) if "/python" not in d]  # other code draws, too


def test_each_rank_may_be_given_its_own_batches(results: Path) -> None:
    expected = trained(exact(batches=in_order()))
    for part in ("state", "history"):
        assert not differences(
            expected[part], load(results, distributed_sampler)[part], tolerance=1e-9
        )


def test_processes_whose_group_is_destroyed_are_on_their_own(results: Path) -> None:
    assert not differences(trained(exact()), load(results, alone_again))


def test_buffers_are_those_of_rank_0(results: Path) -> None:
    """``load`` has compared both ranks bit for bit."""
    buffers = load(results, batch_norm)["state"]["model"][""]
    assert bool(buffers["network.net.1.running_mean"].abs().max() > 0)
