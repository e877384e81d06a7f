"""Bad input to fit and predict: the message names it, and nothing was changed before it."""

import contextlib
import errno
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from ppl_med import storage
from ppl_med.analysis import conformal
from ppl_med.data import Batches
from ppl_med.inference import (
    BernoulliDropout,
    ConditionalNormal,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    checkpoint,
    fit,
    load,
    predict,
    save,
    warm_up,
)
from ppl_med.models import BayesianClassifier, LatentClassifier
from ppl_med.weights import Normal

Batch = dict[str, Any]
pytestmark = pytest.mark.usefixtures("types_unchecked")


def net(channels: int = 1, outputs: int = 2, width: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    layers = (nn.Conv2d(channels, width, 3), nn.ReLU(), pool, nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def classifier(**options: int) -> BayesianClassifier:
    return BayesianClassifier(net(**options), ["no", "yes"])


def batch(cases: int = 8, channels: int = 1, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(first)
    return {
        "image": torch.randn(cases, channels, 4, 4, generator=generator),
        "label": torch.arange(cases) % 2,
        "id": [f"case {first + k}" for k in range(cases)],
    }


def with_pixel(value: float) -> Batch:
    one = batch()
    one["image"][3, 0, 1, 1] = value
    return one


def with_label(change: Callable[[Tensor], Tensor]) -> Batch:
    one = batch()
    return one | {"label": change(one["label"])}


def train(model: Any, guide: Any, batches: Any, **options: Any) -> xr.Dataset:
    return fit(model, guide, batches, progress=False, device="cpu", **options)


def draw(model: Any, guide: Any, batches: Any, **options: Any) -> xr.DataTree:
    settings: dict[str, Any] = {"draws": 2, "progress": False, "device": "cpu"} | options
    return predict(model, guide, batches, **settings)


@contextlib.contextmanager
def refused(error: type[Exception], match: str, *modules: nn.Module) -> Iterator[Any]:
    """The error is raised, and no tensor of the modules differs afterwards in any bit."""
    before = [{k: v.clone() for k, v in tensors(module).items()} for module in modules]
    with pytest.raises(error, match=match) as found:
        yield found
    for module, saved in zip(modules, before, strict=True):
        now = tensors(module)
        assert now.keys() == saved.keys()
        assert [name for name in now if not torch.equal(now[name], saved[name])] == []


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}


# ------------------------------------------------------------------------------------ batches

Case = tuple[Any, type[Exception], str]
BATCHES: dict[str, Case] = {
    "channels": ([batch(channels=3)], ValueError, r"image has 3 channel.*network takes 1"),
    "label too large": (
        [with_label(lambda y: y + 1)],
        ValueError,
        r"label must be in 0\.\.1, but is 2 .*id 'case 1'",
    ),
    "label negative": ([with_label(lambda y: y - 1)], ValueError, r"label must be in 0\.\.1"),
    "label float": ([with_label(Tensor.float)], TypeError, r"label has dtype.*label\.long\(\)"),
    "label bool": ([with_label(Tensor.bool)], TypeError, r"label has dtype.*label\.long\(\)"),
    "label too long": ([batch() | {"label": torch.zeros(9).long()}], ValueError, "label has 9"),
    "label column": ([with_label(lambda y: y[:, None])], ValueError, r"label\[:, 0\]"),
    "NaN pixel": ([with_pixel(float("nan"))], ValueError, r"image holds NaN.*position 3.*drop"),
    "infinite pixel": ([with_pixel(float("inf"))], ValueError, r"image holds NaN or infinite"),
    "uint8 image": (
        [batch() | {"image": torch.zeros(8, 1, 4, 4, dtype=torch.uint8)}],
        TypeError,
        r"image has dtype torch\.uint8.*image\.float\(\)",
    ),
    "no channel axis": (
        [batch() | {"image": torch.zeros(8, 4, 4)}],
        ValueError,
        r"image has shape \(8, 4, 4\).*image\[:, None\]",
    ),
    "no cases": ([batch(cases=0)], ValueError, r"image has shape.*empty"),
    "empty list": ([], ValueError, r"batches is empty.*check"),
    "generator": ((b for b in [batch()]), TypeError, r"batches must be re-iterable.*generator"),
    "one batch": (batch(), TypeError, r"batches is a dict, one batch.*\[batch\]"),
    "tuple": ([(torch.zeros(2, 1, 4, 4), torch.zeros(2))], TypeError, r"must be a dict.*wrap"),
    "no argument": ([{"picture": torch.zeros(2, 1, 4, 4)}], ValueError, r"image"),
    "path": ("folder/of/images", TypeError, r"batches must be re-iterable.*got str"),
}


@pytest.mark.parametrize("verb", [train, draw], ids=["fit", "predict"])
@pytest.mark.parametrize("case", BATCHES.values(), ids=BATCHES)
def test_batches_that_do_not_fit(case: Case, verb: Callable[..., Any]) -> None:
    batches, error, match = case
    model = classifier()
    guide = MeanFieldNormal(model)
    with refused(error, match, model, guide):
        verb(model, guide, batches)


class _Nothing:
    """Says it has a batch, and yields none."""

    num_cases = 8

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        return iter(())


@pytest.mark.parametrize("verb", [train, draw], ids=["fit", "predict"])
def test_a_loader_that_yields_nothing(verb: Callable[..., Any]) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    with refused(ValueError, "batches is empty: it yields no batch; check", model, guide):
        verb(model, guide, _Nothing())


@pytest.mark.parametrize("num_cases", [7, 0, -1, 2.5, True])
def test_a_number_of_cases_that_cannot_be(num_cases: Any) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    with refused(ValueError, rf"num_cases.*{num_cases}", model, guide):
        train(model, guide, [batch()], num_cases=num_cases)


def test_a_number_of_cases_that_nobody_knows() -> None:
    class Unsized(_Nothing):
        num_cases = None  # type: ignore[assignment]

    model = classifier()
    guide = MeanFieldNormal(model)
    with refused(ValueError, r"pass num_cases=", model, guide):
        train(model, guide, Unsized())


def test_a_bad_batch_late_in_training_leaves_what_was_learned(tmp_path: Path) -> None:
    model = classifier()
    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match="image holds NaN") as found:
        train(model, MeanFieldNormal(model), [batch(), with_pixel(float("nan"))], checkpoint=path)
    assert any(str(path) in note for note in found.value.__notes__)
    assert len(checkpoint.read(path)["histories"][0]["nll"]) == 1


def test_a_bad_batch_late_in_prediction_leaves_no_store(tmp_path: Path) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    with refused(ValueError, "image holds NaN", model, guide):
        draw(model, guide, [batch(), with_pixel(float("nan"))], store=tmp_path / "run.nc")
    assert list(tmp_path.iterdir()) == []


def test_a_label_is_missing() -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    bare = {"image": batch()["image"]}
    with refused(ValueError, "batches have no 'label'.*every batch needs", model, guide):
        train(model, guide, [bare])
    with refused(ValueError, "some batches have 'label' and some have not", model, guide):
        draw(model, guide, [batch() | {"id": None}, bare])
    with pytest.raises(ValueError, match=r"batch\['label'\]"):
        train(model, guide, [batch(), bare])


def test_validation_without_a_label_or_with_a_bad_one() -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    for held_out, error in (
        ([{"image": batch()["image"]}], ValueError),
        ([with_label(lambda y: y + 1)], ValueError),
        ([], ValueError),
        (iter([batch()]), TypeError),
    ):
        with refused(error, "validation", model, guide):
            train(model, guide, [batch()], validation=held_out)


def test_calibration_and_test_share_cases() -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    calibration = conformal.calibrate(draw(model, guide, [batch(20)]), alpha=0.2)
    test = draw(model, guide, [batch(8, first=19)])
    with pytest.raises(ValueError, match=r"share 1 case.*'case 19'.*Split"):
        conformal.predict_sets(calibration, test)
    twice = [batch(8), batch(8)]
    with pytest.raises(ValueError, match=r"'case 0' appears 2 times"):
        conformal.calibrate(draw(model, guide, twice), alpha=0.2)
    with pytest.raises(ValueError, match=r"id .*'case 0'"):
        Batches({**batch(2), "id": ["case 0", "case 0"]})


# ------------------------------------------------------------------------------------ programs


def linear(image: Tensor, y: Tensor | None = None, *, num_cases: int | None = None) -> Tensor:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    mean = slope * image.mean((1, 2, 3)) + shift
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    return mean


class Proposal(nn.Module):
    """Normals over some named sites."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.loc = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in names})

    def forward(self, image: Tensor, y: Tensor | None = None, *, num_cases: Any = None) -> None:
        for name, loc in self.loc.items():
            pyro.sample(name, dist.Normal(loc, 1.0))


def regression() -> Batch:
    return {"image": batch()["image"], "y": torch.arange(8.0)}


@pytest.mark.parametrize("verb", [train, draw], ids=["fit", "predict"])
@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["slope"], r"guide does not propose the latent site 'shift'.*Guides\("),
        (["slope", "shift", "shfit"], r"guide proposes 'shfit', which is no latent site.*rename"),
    ],
)
def test_guide_and_model_disagree(names: list[str], match: str, verb: Callable[..., Any]) -> None:
    guide = Proposal(*names)
    with refused(ValueError, match, guide):
        verb(linear, guide, [regression()])


def test_guide_with_another_plate_scale() -> None:
    torch.manual_seed(0)
    model = LatentClassifier(1, ["no", "yes"], width=2)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, image: Tensor, label: Any = None, *, num_cases: Any = None) -> None:
            with pyro.plate("case", len(image)):
                pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))

    guide = Guide()
    with refused(ValueError, r"'z': the guide scales.*1.*2.*size=num_cases", model, guide):
        train(model, guide, [batch()], num_cases=16)


@pytest.mark.parametrize("verb", [train, draw], ids=["fit", "predict"])
def test_net_with_another_number_of_outputs(verb: Callable[..., Any]) -> None:
    model = classifier(outputs=3)
    guide = MeanFieldNormal(model)
    match = r"net gave an output of shape \(\d+, 3\) but \(\d+, 2\).*2 output"
    with refused(ValueError, match, model, guide):
        verb(model, guide, [batch()])


def test_observation_outside_the_plate_of_cases() -> None:
    def outside(image: Tensor, y: Any = None, *, num_cases: Any = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(slope * image.mean((1, 2, 3)), 1.0).to_event(1), obs=y)

    guide = Proposal("slope")
    with refused(ValueError, r"'y' stands in no plate of cases.*pyro\.plate", guide):
        train(outside, guide, [regression()])


def test_program_without_num_cases() -> None:
    def short(image: Tensor, y: Any = None) -> None:
        pyro.sample("slope", dist.Normal(0.0, 1.0))

    guide = Proposal("slope")
    with refused(ValueError, "the model takes no keyword num_cases", guide):
        train(short, guide, [regression()])


# ------------------------------------------------------------------------------------ arguments

ARGUMENTS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "estimator": (lambda: MeanFieldNormal(classifier(), estimator="flip"), ValueError),  # type: ignore[arg-type]
    "init_scale": (lambda: MeanFieldNormal(classifier(), init_scale=0.0), ValueError),
    "init_scale, text": (lambda: MeanFieldNormal(classifier(), "small"), ValueError),  # type: ignore[arg-type]
    "init_scale, NaN": (lambda: MeanFieldNormal(classifier(), float("nan")), ValueError),
    "prior": (lambda: BayesianClassifier(net(), ["a", "b"], prior="normal"), TypeError),  # type: ignore[arg-type]
    "prior, class": (lambda: BayesianClassifier(net(), ["a", "b"], prior=Normal), TypeError),  # type: ignore[arg-type]
    "scale": (lambda: Normal(-1.0), ValueError),
    "loc": (lambda: Normal(loc="trained"), ValueError),  # type: ignore[arg-type]
    "where": (lambda: BayesianClassifier(net(), ["a", "b"], where="layer4.*"), ValueError),
    "where, number": (lambda: BayesianClassifier(net(), ["a", "b"], where=3), TypeError),  # type: ignore[arg-type]
    "likelihood": (lambda: BayesianClassifier(net(), ["a", "b"], likelihood="normal"), ValueError),
    "classes": (lambda: BayesianClassifier(net(), ["a", "a"]), ValueError),
    "batch_norm": (lambda: BayesianClassifier(net(), ["a", "b"], batch_norm="off"), ValueError),  # type: ignore[arg-type]
    "net": (lambda: BayesianClassifier(net, ["a", "b"]), TypeError),  # type: ignore[arg-type]
    "rate": (lambda: BernoulliDropout(classifier(), rate=1.0), ValueError),
    "rate, NaN": (lambda: BernoulliDropout(classifier(), rate=float("nan")), ValueError),
    "rate, name": (lambda: BernoulliDropout(classifier(), rate={"fc.weight": 0.1}), ValueError),
    "members": (lambda: Ensemble(classifier(), PointEstimate, members=1), ValueError),
    "start": (lambda: Ensemble(classifier(), PointEstimate, start="new"), ValueError),  # type: ignore[arg-type]
    "fraction": (lambda: warm_up(0.0), ValueError),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_models_and_guides(name: str) -> None:
    build, error = ARGUMENTS[name]
    with pytest.raises(error, match=name.split(",")[0]):
        build()


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "float16"},
        {"schedule": "linear"},
        {"schedule": lambda done: float("nan")},
        {"schedule": lambda done: -1.0},
        {"kl_weight": -1.0},
        {"kl_weight": "warm"},
        {"kl_weight": lambda done: float("inf")},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": "fast"},
        {"epochs": 0},
        {"epochs": 1.5},
        {"seed": -1},
        {"seed": 0.5},
    ],
    ids=lambda change: "-".join(f"{k}={v if not callable(v) else 'f'}" for k, v in change.items()),
)
def test_arguments_of_fit(change: dict[str, Any]) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    with refused((ValueError, TypeError), next(iter(change)), model, guide):  # type: ignore[arg-type]
        train(model, guide, [batch()], **change)


@pytest.mark.parametrize(
    "change",
    [
        {"draws": 0},
        {"draws": 1.5},
        {"prior_draws": -1},
        {"seed": -1},
        {"store": "run.txt"},
        {"resume": True},
        {"log_likelihood_of": "test"},
    ],
    ids=str,
)
def test_arguments_of_predict(change: dict[str, Any]) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    with refused(ValueError, next(iter(change)), model, guide):
        draw(model, guide, [batch()], **change)


# ------------------------------------------------------------------------------------ files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a short run."""
    model = classifier()
    train(model, MeanFieldNormal(model), [batch()], checkpoint=tmp_path / "run.pt")
    return tmp_path / "run.pt"


def assert_not_read(path: Path, error: type[Exception], match: str) -> None:
    """Neither load nor a resumed fit takes the file; both leave it and the parameters alone."""
    before = path.read_bytes()
    model = classifier()
    guide = MeanFieldNormal(model)
    with refused(error, match, model, guide):
        load(path, model, guide)
    with refused(error, match, model, guide):
        train(model, guide, [batch()], checkpoint=path, resume=True)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    assert_not_read(saved, ValueError, r"run\.pt is damaged.*delete it")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_checkpoint_with_flipped_bits(saved: Path, share: float) -> None:
    content = bytearray(saved.read_bytes())
    at = int(share * len(content))
    for position in range(at, at + 64):
        content[position] ^= 0xFF
    saved.write_bytes(content)
    assert_not_read(saved, ValueError, r"run\.pt is damaged.*delete it")


class _Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_in_a_checkpoint_is_never_executed(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path, made = tmp_path / "folder" / "run.pt", tmp_path / "made"
    content = {"format": checkpoint.FORMAT, "states": _Code(made)}
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert_not_read(path, ValueError, "damaged or no checkpoint")
    assert not made.exists()
    if kind == "torch":  # the trap is one: unpickled, it makes the folder
        torch.load(path, weights_only=False)
        assert made.exists()


def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "run.pt")
    assert_not_read(tmp_path / "run.pt", ValueError, "was not written by ppl_med")


def test_no_checkpoint_to_load(tmp_path: Path) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    with refused(FileNotFoundError, r"none\.pt does not exist", model, guide):
        load(tmp_path / "none.pt", model, guide)


def other_width() -> tuple[Any, Any]:
    model = classifier(width=3)
    return model, MeanFieldNormal(model)


def other_guide() -> tuple[Any, Any]:
    model = classifier()
    return model, PointEstimate(model)


def other_model() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return linear, Proposal("slope", "shift")


def ensemble() -> tuple[Any, Any]:
    model = classifier()
    return model, Ensemble(model, PointEstimate, members=2)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (other_width, r"does not fit the model: \d+ tensors differ, first 'network.*\[2.*\[3"),
        (other_guide, r"for the guide MeanFieldNormal, not for PointEstimate"),
        (other_model, r"for the model BayesianClassifier, not for linear"),
        (ensemble, r"holds 1 member\(s\), the guide 2"),
    ],
)
def test_a_checkpoint_of_another_program(saved: Path, build: Any, match: str) -> None:
    model, guide = build()
    modules = [program for program in (model, guide) if isinstance(program, nn.Module)]
    with refused(ValueError, match, *modules):
        load(saved, model, guide)
    before = saved.read_bytes()
    batches = [regression() if model is linear else batch()]
    with refused(ValueError, match, *modules):
        train(model, guide, batches, checkpoint=saved, resume=True)
    assert saved.read_bytes() == before


def test_saved_parameters_are_no_run_to_resume(tmp_path: Path) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    save(tmp_path / "run.pt", model, guide)
    with refused(ValueError, "written by save, not by fit.*another path", model, guide):
        train(model, guide, [batch()], checkpoint=tmp_path / "run.pt", resume=True)


def test_files_that_exist_are_not_overwritten(saved: Path) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    before = saved.read_bytes()
    with refused(FileExistsError, r"run\.pt exists; pass resume=True", model, guide):
        train(model, guide, [batch()], checkpoint=saved)
    assert saved.read_bytes() == before
    for name in ("run.nc", "run.zarr"):
        store = saved.parent / name
        draw(model, guide, [batch()], store=store)
        with refused(FileExistsError, rf"{name} exists.*another path", model, guide):
            draw(model, guide, [batch()], store=store)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    with refused(IsADirectoryError, "is a folder; give the path of a file", model, guide):
        train(model, guide, [batch()], checkpoint=tmp_path)
    (tmp_path / "file").touch()
    with refused(OSError, "checkpoint .* could not be written.*another path", model, guide):
        train(model, guide, [batch()], checkpoint=tmp_path / "file" / "run.pt")


def fill_disk(monkeypatch: Any, call: str, marks: tuple[str, ...]) -> None:
    """From now on a call fails as on a full disk, for files whose name holds one of the marks."""
    owner: Any = Path if call == "open" else os
    original = getattr(owner, call)

    def failing(first: Any, *args: Any, **kwargs: Any) -> Any:
        if call == "fsync" or any(mark in str(first) for mark in marks):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(first, *args, **kwargs)

    monkeypatch.setattr(owner, call, failing)


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_disk_full_while_a_checkpoint_is_written(
    call: str, tmp_path: Path, monkeypatch: Any
) -> None:
    def run(path: Path, **options: Any) -> xr.Dataset:
        model = classifier()
        settings: dict[str, Any] = {"checkpoint": path, "checkpoint_every": 0.0} | options
        return train(model, MeanFieldNormal(model), [batch(), batch(first=8)], **settings)

    path, write = tmp_path / "run.pt", checkpoint.write
    with monkeypatch.context() as patch:

        def once(*args: Any) -> None:
            write(*args)
            fill_disk(patch, call, (".partial",))
            patch.setattr(checkpoint, "write", write)

        patch.setattr(checkpoint, "write", once)
        with pytest.raises(
            OSError, match=r"run\.pt could not be written: the disk is full.*resume"
        ):
            run(path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    assert len(checkpoint.read(path)["histories"][0]["nll"]) == 1
    resumed = run(path, resume=True)
    xr.testing.assert_identical(resumed, run(tmp_path / "whole.pt"))


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_disk_full_while_a_posterior_is_written(
    call: str, tmp_path: Path, monkeypatch: Any
) -> None:
    model = classifier()
    guide = MeanFieldNormal(model)
    tree = draw(model, guide, [batch()], store=tmp_path / "first.nc")
    before = (tmp_path / "first.nc").read_bytes()
    with monkeypatch.context() as patch:
        fill_disk(patch, call, (".partial",))
        with pytest.raises(OSError, match=r"first\.nc could not be written: the disk is full"):
            storage.save(tree, tmp_path / "first.nc")
        # The folder of temporary files is full as well.
        said = r"second\.nc could not be written: the disk is full.*write it with ppl_med\.storage"
        with pytest.warns(UserWarning, match=said):
            kept = draw(model, guide, [batch()], store=tmp_path / "second.nc")
    xr.testing.assert_equal(kept, tree)
    assert [file.name for file in tmp_path.iterdir()] == ["first.nc"]
    assert (tmp_path / "first.nc").read_bytes() == before


@pytest.mark.parametrize("moment", ["append", "finish"])
def test_a_disk_full_while_a_store_grows(moment: str, tmp_path: Path, monkeypatch: Any) -> None:
    from ppl_med.inference import predictive

    monkeypatch.setattr(predictive, "CHUNK_CASES", 8)
    model = classifier()
    guide = MeanFieldNormal(model)
    batches = [batch(), batch(first=8)]
    mark = "label/c/0/0/1" if moment == "append" else "run.zarr.partial"
    with monkeypatch.context() as patch:
        original = os.replace

        def failing(source: Any, target: Any, **options: Any) -> None:
            if str(target).endswith(mark) or str(source).endswith(mark):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(source, target, **options)

        patch.setattr(os, "replace", failing)
        first = 8 if moment == "append" else 16
        match = (
            rf"run\.zarr could not be written: the disk is full .*; {first} cases are safe.*resume"
        )
        with refused(OSError, match, model, guide):
            draw(model, guide, batches, store=tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()
    resumed = draw(model, guide, batches, store=tmp_path / "run.zarr", resume=True).load()
    assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]
    whole = draw(model, guide, batches)
    for node in whole.subtree:
        xr.testing.assert_equal(node.to_dataset(), resumed[node.path].to_dataset())


# ------------------------------------------------------------------------------------ training


class Poisoned(torch.optim.SGD):
    """Sets every parameter to a value at the third step."""

    value, steps = float("nan"), 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        super().step(closure)
        if self.steps == 3:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.fill_(self.value)


@pytest.mark.parametrize(
    ("every", "match", "good"),
    [
        (0.0, r"guide\.parts\.weights\.loc stopped being finite before step 3", 2),
        (1e9, r"loss stopped being finite at step 3: .*likelihood of 'label' is nan.*'weights'", 0),
    ],
)
def test_a_loss_that_is_not_finite(every: float, match: str, good: int, tmp_path: Path) -> None:
    model = classifier()
    path = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match=match) as found:
        train(
            model,
            MeanFieldNormal(model),
            [batch()] * 6,
            optimizer=lambda parameters: Poisoned(parameters, lr=1e-3),
            checkpoint=path,
            checkpoint_every=every,
        )
    wanted = f"Last good checkpoint: {path}." if good else "Last good checkpoint: none."
    assert wanted in str(found.value) and "learning_rate" in str(found.value)
    assert path.exists() == bool(good)
    if good:
        content = checkpoint.read(path)
        assert len(content["histories"][0]["nll"]) == good
        states = [
            tensor for state in content["states"] for tensor in checkpoint.named_tensors(state)
        ]
        assert states and all(bool(t.isfinite().all()) for _, t in states if t.is_floating_point())


def test_parameters_lost_in_the_last_step_are_not_kept(tmp_path: Path) -> None:
    """The last step's loss is finite; what it leaves is not."""
    model = classifier()
    with pytest.raises(FloatingPointError, match="stopped being finite before step 3"):
        train(
            model,
            MeanFieldNormal(model),
            [batch()] * 3,
            optimizer=lambda parameters: Poisoned(parameters, lr=1e-3),
            checkpoint=tmp_path / "run.pt",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_far_prior_warns() -> None:
    model = BayesianClassifier(net(), ["no", "yes"], Normal(1e-3))
    with pytest.warns(UserWarning, match=r"KL is .* nats per case, above 1000.*init_scale"):
        train(model, MeanFieldNormal(model), [batch()])


def test_a_collapsed_latent_warns() -> None:
    torch.manual_seed(0)
    model = LatentClassifier(1, ["no", "yes"], width=2)

    class Encoder(nn.Module):
        def forward(self, image: Tensor, label: Tensor) -> Any:
            return model.prior(image)

    match = re.escape("posterior collapse: the latent 'z' carries 0 nats per case")
    with pytest.warns(UserWarning, match=match + r".*warm_up\(\)"):
        train(model, ConditionalNormal(Encoder()), [batch()])


def test_a_stock_guide_of_another_program() -> None:
    def other(image: Tensor, y: Any = None, *, num_cases: Any = None) -> None:
        pyro.sample("slope", dist.Normal(0.0, 1.0))

    guide = AutoNormal(other)
    with pytest.raises(ValueError, match="does not propose the latent site 'shift'"):
        train(linear, guide, [regression()])
    with pytest.raises(ValueError, match="does not propose the latent site 'shift'"):
        draw(linear, guide, [regression()])
