"""Runs from a description: trained, saved, loaded without a script, and made again."""

import copy
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from rank_processes import run_together
from reader_folders import write_table
from run_configs import CELLS, classifier

from ppl_med import runs, storage
from ppl_med.data import Batches, blood_smear, standardization
from ppl_med.inference import checkpoint, predict
from ppl_med.inference.checkpoint import digest
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.inference.process_group import rank
from ppl_med.programs.sites import select_arguments
from ppl_med.runs.run_parts import build_data, build_programs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A trained run."""
    return runs.fit(classifier(), tmp_path_factory.mktemp("runs") / "cells", progress=False)


def weights_of(run: runs.Run) -> str:
    return digest(members_of(run.model, run.guide))


def test_a_run_is_loaded_without_a_net(run: runs.Run) -> None:
    loaded = runs.load(run.folder)
    assert weights_of(loaded) == weights_of(run)
    assert loaded.classes == ("healthy", "ill")
    images = blood_smear(24, size=16, seed=0)["image"]
    loc, scale = standardization(images)
    assert (loaded.loc, loaded.scale, loaded.unit) == (loc.tolist(), scale.tolist(), "uint8")
    assert loaded.config == run.config == runs.read_config(run.folder / "config.yaml")
    assert loaded.provenance == run.provenance
    assert loaded.provenance["training_cases"] == 24
    xr.testing.assert_identical(loaded.history, run.history)


def test_its_posterior_is_that_of_the_pair_that_was_trained(run: runs.Run) -> None:
    cells = blood_smear(10, size=16, seed=1)
    assert run.loc is not None and run.scale is not None
    arrays = {name: cells[name] for name in ("image", "label", "id")}
    batches = Batches(arrays, loc=run.loc, scale=run.scale)
    expected = predict(run.model, run.guide, batches, draws=4, seed=3, device="cpu", progress=False)
    tree = runs.predict(run.folder, progress=False)
    xr.testing.assert_identical(
        tree["posterior/probs"].load().drop_attrs(), expected["posterior/probs"].drop_attrs()
    )
    assert storage.load(run.folder / "posterior.nc")["observed_data"].sizes["case"] == 10
    page = runs.report(run.folder, title="Cells").read_text(encoding="utf-8")
    assert "<title>Cells" in page and "Can the confidence be trusted?" in page


def test_the_config_of_a_run_makes_it_again_bit_for_bit(run: runs.Run, tmp_path: Path) -> None:
    torch.manual_seed(99)  # nothing of the process counts
    again = runs.fit(run.folder / "config.yaml", tmp_path / "again", progress=False)
    assert weights_of(again) == weights_of(run)
    xr.testing.assert_identical(again.history, run.history)
    other = runs.fit(run.config, tmp_path / "other", changes=["seed=4"], progress=False)
    assert weights_of(other) != weights_of(run)


def fit_together(folder: Path) -> None:
    """One rank comes when the other has begun."""
    while rank() and not (folder / "run" / "config.yaml").exists():
        time.sleep(0.05)
    found = runs.fit(classifier(), folder / "run", progress=False)
    digests = found.provenance["parameters_sha256"], digest(members_of(found.model, found.guide))
    assert digests[0] == digests[1]


def test_processes_that_train_together_write_one_run(tmp_path: Path) -> None:
    """Each of them moved the folder of the others aside, as an earlier run, and wrote its own."""
    earlier = tmp_path / "run"
    earlier.mkdir()
    (earlier / "old").touch()
    assert run_together(fit_together, 2, tmp_path / "meet", tmp_path) == [0, 0]
    assert {one.name for one in tmp_path.glob("run*")} == {"run", "run.1"}
    assert [one.name for one in (tmp_path / "run.1").iterdir()] == ["old"]
    loaded = runs.load(earlier)
    assert loaded.history is not None and loaded.history.attrs["ranks"] == 2


def test_a_run_is_resumed_with_its_own_description_only(run: runs.Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    same = runs.fit(run.config, tmp_path / "run", resume=True, progress=False)
    assert weights_of(same) == weights_of(run)
    with pytest.raises(
        ValueError, match=r"config\.net\.args\.2\.out_features is another|config\.net"
    ):
        config = copy.deepcopy(run.config)
        config["net"]["args"][2]["out_features"] = 3
        runs.fit(config, tmp_path / "run", resume=True, progress=False)
    moved = runs.fit(run.config, tmp_path / "run", changes=["fit.epochs=1"], progress=False)
    assert (tmp_path / "run.1/weights.safetensors").exists()  # nothing is lost
    assert moved.history is not None and moved.history.sizes["step"] == 2


def test_files_of_two_runs_are_told_apart(run: runs.Run, tmp_path: Path) -> None:
    runs.fit(run.config, tmp_path / "other", changes=["seed=5"], progress=False)
    shutil.copy(run.folder / "weights.safetensors", tmp_path / "other")
    with pytest.raises(ValueError, match="the files are of two runs"):
        runs.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "damage", "error"),
    [
        ("run.json", None, "holds no finished run"),
        ("config.yaml", None, "does not exist"),
        ("weights.safetensors", None, "does not exist"),
        ("weights.safetensors", lambda data: data[:-8], "damaged"),
        ("weights.safetensors", lambda data: data[:-8] + bytes(8), "damaged"),
        ("run.json", lambda data: data[:40], "damaged"),
        ("config.yaml", lambda data: data.replace(b"torch.nn.Linear", b"torch.load"), "torch.load"),
        ("config.yaml", lambda data: data.replace(b"out_features: 2", b"out_features: 3"), "fit"),
    ],
)
def test_a_damaged_run_is_an_error(
    run: runs.Run, name: str, damage: Any, error: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    if damage is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises((FileNotFoundError, ValueError), match=error):
        runs.load(folder)


# --------------------------------------------------------------------- saved from a script

GUIDES = {
    "dropout": {"name": "ppl_med.inference.BernoulliDropout", "rate": 0.2, "skip_first": False},
    "concrete dropout": {"name": "ppl_med.inference.ConcreteDropout", "skip_first": False},
    "radial": {"name": "ppl_med.inference.RadialNormal", "init_scale": 0.1},
    "laplace": {"name": "ppl_med.inference.Laplace", "structure": "diag"},
    "swag": {"name": "ppl_med.inference.SWAG", "iterates": 5, "rank": 2},
    "low rank": {"name": "ppl_med.inference.LowRankNormal", "rank": 2},
    "ensemble": {
        "name": "ppl_med.inference.Ensemble",
        "guide_factory": {"function": "ppl_med.inference.MeanFieldNormal", "init_scale": 0.2},
        "members": 2,
    },
    "stock": {"name": "pyro.infer.autoguide.AutoNormal"},
    "example": {"name": "ppl_med.inference.MeanFieldNormal", "example": True},
}


@pytest.mark.parametrize("guide", GUIDES.values(), ids=list(GUIDES))
def test_every_guide_is_saved_and_loaded(guide: dict[str, Any], tmp_path: Path) -> None:
    config = runs.read_config(classifier(guide=guide))
    data = build_data(config)
    example = next(iter(data.splits["train"]))
    model, built = build_programs(config, example=example)
    if guide is GUIDES["stock"]:
        built(**select_arguments(model, example))
    with torch.no_grad():
        for pair in members_of(model, built):
            for part in pair:
                for parameter in part.parameters():
                    parameter.add_(torch.rand_like(parameter))
    saved = runs.save(tmp_path / "run", model, built, config=config, example=example)
    assert weights_of(runs.load(tmp_path / "run")) == weights_of(saved)


def test_a_description_of_another_net_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = classifier()
    model, guide = build_programs(runs.read_config(config))
    for path in (
        "model.classes=[a, b, c]",
        "guide={name: ppl_med.inference.PointEstimate}",
        "prior.scale=2.0",
        "net.args.2.in_features=4",
    ):
        with pytest.raises(ValueError, match="config describes another model or guide"):
            runs.save(tmp_path / "run", model, guide, config=runs.read_config(config, [path]))
    assert not (tmp_path / "run").exists()


def test_a_net_of_ones_own_runs_once_its_module_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net_of_a_run.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, width: int):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(256, width), nn.Linear(width, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = classifier(net={"name": "own_net_of_a_run.Net", "width": 3}, fit={"device": "cpu"})
    with pytest.raises(ValueError, match="--allow own_net_of_a_run"):
        runs.fit(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    run = runs.fit(config, tmp_path / "run", allow=["own_net_of_a_run"], progress=False)
    with pytest.raises(ValueError, match="--allow own_net_of_a_run"):
        runs.load(tmp_path / "run")
    loaded = runs.load(tmp_path / "run", allow=["own_net_of_a_run"])
    assert weights_of(loaded) == weights_of(run)


def test_a_net_may_start_from_a_file_which_its_run_does_not_need(tmp_path: Path) -> None:
    last = torch.nn.Linear(16, 2)
    net = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), last)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    prior = {"name": "ppl_med.weights.Normal", "scale": 0.5, "loc": "pretrained"}
    config = classifier(pretrained={"path": str(tmp_path / "net.pt")}, prior=prior)
    model, guide = build_programs(runs.read_config(config))
    flat = torch.cat([last.weight.flatten(), last.bias]).detach()
    torch.testing.assert_close(guide.center(), flat)
    saved = runs.save(tmp_path / "run", model, guide, config=config)
    (tmp_path / "net.pt").unlink()
    assert weights_of(runs.load(tmp_path / "run")) == weights_of(saved)
    for change, message in {
        "pretrained.paths=x": "pretrained has no 'paths'; did you mean 'path'",
        "net=null": "config",
    }.items():
        with pytest.raises(ValueError, match=message):
            build_programs(runs.read_config(config, [change]))


# --------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fit.epoch=3", "fit has no 'epoch'; did you mean 'epochs'"),
        ("predict.drws=3", "predict has no 'drws'; did you mean 'draws'"),
        ("modell=3", "config has no 'modell'; did you mean 'model'"),
        ("data.trian=x", "data has no 'trian'; did you mean 'train'"),
        ("data.batches.batchsize=3", "data.batches has no 'batchsize'; did you mean 'batch_size'"),
        ("model.clases=[a]", "no 'clases'; did you mean 'classes'"),
        ("guide.initscale=1", "no 'initscale'; did you mean 'init_scale'"),
        ("data.train.num_case=1", "no 'num_case'; did you mean 'num_cases'"),
        ("data.keep=[image, lable]", r"data\.keep must be among the arrays of train: .*'lable'"),
        ("card.intended_us=x", "card has no 'intended_us'; did you mean 'intended_use'"),
        ("guide=3", r"config\.guide must be a mapping with a name, got 3"),
        ("fit.checkpoint=x.pt", "fit has no 'checkpoint'"),
        ("fit.learning_rate=-1", "learning_rate must be"),
        ("data=null", r"config\.data must be a mapping with source or train"),
        ("data.test=test", r"data\.test must be a mapping with a name"),
        ("seed=x", "seed must be a whole number"),
        ("prior.name=ppl_med.weights.Norml", "did you mean 'ppl_med.weights.Normal'"),
        ("fit", "set must be such as fit.epochs=3"),
        ("net.args.7.name=x", "set must be an index below 3"),
    ],
)
def test_a_wrong_key_names_the_nearest_before_any_work(
    change: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        runs.fit(classifier(), tmp_path / "run", changes=[change], progress=False)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_what_has_no_place_in_a_model_is_told() -> None:
    config = classifier(
        model={"name": "ppl_med.models.LatentClassifier", "in_channels": 1, "classes": ["a", "b"]}
    )
    with pytest.raises(
        ValueError, match=r"config\.net has no place: .*LatentClassifier takes no net"
    ):
        runs.check(config)


def test_splits_come_from_one_reader_or_from_several(tmp_path: Path) -> None:
    config = runs.read_config(classifier())
    config["data"] = {
        "source": {**CELLS, "num_cases": 8},
        "keep": ["image", "label"],
        "standardize": False,
    }
    data = build_data(config)
    assert (list(data.splits), data.loc, data.scale) == (["train"], [0.0], [1.0])
    first = next(iter(data.splits["train"]))["image"]
    assert first.max() <= 1 and first.shape == (8, 1, 16, 16)
    config["data"]["train"] = "train"
    with pytest.raises(ValueError, match=r"but data\.source has no splits"):
        build_data(config)


def test_every_split_may_have_a_table_of_its_own(tmp_path: Path) -> None:
    write_table(tmp_path)
    table = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    config = runs.read_config(classifier())
    config["data"] = {"keep": ["image", "label", "patient"]}
    for name, rows in {"train": table[:12], "test": table[12:]}.items():
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
        reader = {"name": "ppl_med.data.from_table", "table": str(tmp_path / f"{name}.csv")}
        config["data"][name] = {**reader, "shares": {"all": 1.0}}
    data = build_data(config)
    assert {name: batches.num_cases for name, batches in data.splits.items()} == {
        "train": 12,
        "test": 8,
    }
    # The first patient of test is the last of train, too.
    table[11:].to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(ValueError, match=r"patients of train and patients of test share 1 id"):
        build_data(config)
    config["data"]["train"] = reader
    with pytest.raises(ValueError, match=r"data\.train gives the splits train, val, test"):
        build_data(config)


def test_loaders_of_dicts_are_taken_as_they_are() -> None:
    config = runs.read_config(classifier())
    items = [{"image": [[[0.0] * 16] * 16], "label": k % 2} for k in range(4)]
    config["data"] = {
        "train": {
            "name": "monai.data.DataLoader",
            "batch_size": 2,
            "dataset": {
                "name": "monai.data.Dataset",
                "data": items,
                "transform": {"name": "monai.transforms.ToTensord", "keys": ["image"]},
            },
        }
    }
    data = build_data(config)
    assert data.loc is None and len(data.splits["train"]) == 2
    assert "keep their contracts" in runs.check(config)
    config["data"]["batches"] = {"batch_size": 3}
    with pytest.raises(ValueError, match="data come as batches"):
        build_data(config)


def test_data_sets_of_dicts_are_given_out_in_batches() -> None:
    config = runs.read_config(classifier())
    items = [{"image": [[[0.0] * 16] * 16], "truth": k % 2} for k in range(5)]
    transform = {"name": "monai.transforms.ToTensord", "keys": ["image", "truth"]}
    dataset = {"name": "monai.data.Dataset", "data": items, "transform": transform}
    config["data"] = {"train": dataset, "batches": {"batch_size": 2, "keys": {"truth": "label"}}}
    text = runs.check(config)
    assert "train: 5 cases in 3 batches of image (2, 1, 16, 16), label (2,)" in text
    with pytest.raises(ValueError, match="has no 'worker'; did you mean 'workers'"):
        runs.check(config, changes=["data.batches.worker=2"])


def test_check_tells_what_a_run_would_be(tmp_path: Path) -> None:
    text = runs.check(classifier())
    assert "train: 24 cases in 2 batches of image (12, 1, 16, 16), label (12,), id (12,)" in text
    assert "test: 10 cases in 1 batches" in text
    assert "random weights: 34" in text  # 16 x 2, and 2 biases
    with pytest.raises(AssertionError, match=r"output of shape \(4, 3\) but \(4, 2\) is needed"):
        runs.check(classifier(), changes=["net.args.2.out_features=3"])


def test_a_logger_of_a_description_writes_into_each_run_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = {"name": "ppl_med.inference.CsvLogger", "path": "logs/epochs.csv"}
    config = classifier(fit={"epochs": 1, "device": "cpu", "callbacks": [log]})
    runs.check(config)
    assert not (tmp_path / "logs").exists()
    run = runs.fit(config, "run", progress=False)
    runs.fit(run.folder / "config.yaml", tmp_path / "again", progress=False)
    for folder in ("run", "again"):
        assert len((tmp_path / folder / "logs/epochs.csv").read_text().splitlines()) == 2


def test_a_trained_part_cannot_be_changed_at_prediction(run: runs.Run, tmp_path: Path) -> None:
    for change, message in {
        "model.classes=[a, b]": r"set changes model\.classes",
        "data.test=null": r"config\.data has no test",
    }.items():
        with pytest.raises(ValueError, match=message):
            runs.predict(run.folder, out=tmp_path / "a.nc", changes=[change], progress=False)
    tree = runs.predict(
        run.folder,
        split="train",
        changes=["predict.draws=2"],
        out=tmp_path / "a.nc",
        progress=False,
    )
    assert tree["posterior"].sizes["draw"] == 2
    assert (
        np.asarray(tree["posterior/case"]).tolist()
        == blood_smear(24, size=16, seed=0)["id"].tolist()
    )


# ---------------------------------------------------------------------- weights as safetensors


def test_both_formats_hold_the_same(run: runs.Run, tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        checkpoint.save(tmp_path / name, run.model, run.guide)
        model, guide = build_programs(run.config)
        assert digest([(model, guide)]) != weights_of(run)
        checkpoint.load(tmp_path / name, model, guide)
        assert digest([(model, guide)]) == weights_of(run)


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    content = {
        "states": [{"a": base, "tied": base, "view": base[::2], "b": {"": torch.tensor(3)}}],
        "dtypes": [torch.ones(2, dtype=kind) for kind in (torch.bfloat16, torch.bool, torch.int8)],
        "empty": torch.zeros(0, 3),
        "rest": [None, True, 1, 0.1, "text", {}, [], {"once": ["w"]}],
    }
    checkpoint.write(tmp_path / "a.safetensors", content)
    found = checkpoint.read(tmp_path / "a.safetensors")
    assert found.pop("format") == checkpoint.FORMAT
    assert found["rest"] == content["rest"]
    for (name, one), (other, expected) in zip(
        checkpoint.named_tensors(found), checkpoint.named_tensors(content), strict=True
    ):
        assert name == other and one.dtype == expected.dtype and torch.equal(one, expected)
    for bad in ({"a": {1: 2}}, {"a": object()}):
        with pytest.raises(TypeError, match=r"safetensors"):
            checkpoint.write(tmp_path / "a.safetensors", bad)
    assert checkpoint.read(tmp_path / "a.safetensors")["rest"] == content["rest"]


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        checkpoint.read(tmp_path / "a.safetensors")


def test_training_keeps_its_checkpoints_in_torchs_format(tmp_path: Path) -> None:
    from ppl_med.inference import fit

    config = runs.read_config(classifier())
    model, guide = build_programs(config)
    with pytest.raises(ValueError, match=r"checkpoint must be a file such as run\.pt"):
        fit(model, guide, build_data(config).splits["train"], checkpoint=tmp_path / "a.safetensors")
