"""What a file may name, and that nothing else is imported or run."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from ppl_med.runs.allowed_names import (
    PLACES,
    PLACES_TO_WRITE,
    SENDERS,
    check_allowed,
    names_in,
    resolve,
)
from ppl_med.runs.components import Builder
from ppl_med.runs.yaml_files import as_yaml, parse_yaml

REFUSED = [
    "os.system", "subprocess.Popen", "builtins.eval", "importlib.import_module", "shutil.rmtree",
    "torch.os.system", "torch.load", "torch.hub.load", "torch.jit.load", "torch.classes",
    "torch.nn.modules.module.torch.os.system", "torch.nn.Linear.__init__",
    "torch.nn.__builtins__", "torch.nn.functional.relu", "torch.nn.init.normal_",
    "torch.utils.cpp_extension.load", "torch.utils.data.get_worker_info",
    "torch.serialization.load", "torch.optim.Adam.step", "torchvision.models.get_model",
    "torchvision.models.list_models", "torchvision.models.segmentation",
    "torchvision.datasets.CIFAR10", "torchvision.io.read_image", "monai.bundle.run",
    "monai.bundle.ConfigParser", "monai.utils.run_cmd", "monai.data.os",
    "monai.data.download_mmar", "monai.networks.nets.torch", "monai.apps.download_url",
    "monai.transforms.SaveImage", "monai.transforms.SaveImaged",
    "monai.transforms.SaveClassificationd", "monai.transforms.WriteFileMapping",
    "monai.transforms.locate", "ppl_med.data.import_module", "ppl_med.data.save_split",
    "ppl_med.inference.fit", "ppl_med.inference.load", "ppl_med.storage.save",
    "ppl_med.runs.load", "ppl_med.data.readers.bccd.Path", "ppl_med.weights.Where",
    "pyro.distributions.torch", "my_module.Net", "Linear", "", ".", "torch.nn.",
]  # fmt: skip
ALLOWED = [
    "torch.nn.Linear", "torch.optim.AdamW", "torch.utils.data.DataLoader",
    "torch.distributions.Gamma", "pyro.distributions.Gamma", "pyro.infer.autoguide.AutoNormal",
    "torchvision.models.resnet18", "torchvision.models.segmentation.fcn_resnet50",
    "torchvision.transforms.v2.RandomCrop", "monai.networks.nets.UNet",
    "monai.networks.nets.resnet18", "monai.transforms.Spacingd", "monai.transforms.Compose",
    "monai.data.CacheDataset", "monai.data.DataLoader", "monai.data.load_decathlon_datalist",
    "monai.data.NibabelReader", "ppl_med.data.load_lidc", "ppl_med.models.ProbabilisticUNet",
    "ppl_med.inference.Geco", "ppl_med.inference.warm_up", "ppl_med.likelihoods.FocalLoss",
    "ppl_med.networks.UNet", "ppl_med.weights.Laplace",
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_is_no_part_of_a_run_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^net\.name names .*, which"):
        resolve(name, where="net.name")


@pytest.mark.parametrize("name", ALLOWED)
def test_parts_of_runs_may_be_named(name: str) -> None:
    assert resolve(name).__name__.rpartition(".")[2] == name.rpartition(".")[2]


@pytest.mark.parametrize("value", [None, 3, ["torch.nn.Linear"], "torch.nn.Línear"])
def test_a_name_is_a_text(value: Any) -> None:
    with pytest.raises(ValueError, match="must be a name such as"):
        resolve(value)


def test_every_place_has_names_and_no_verb() -> None:
    for place in PLACES:
        __import__(place)
        found = names_in(sys.modules[place], place)
        assert found, place
        assert not {"load", "save", "fit", "predict", "load_split_files", "exec", "eval"} & set(
            found
        )


def test_a_wrong_name_brings_the_nearest() -> None:
    for wrong, right in {
        "torchvision.models.resnet81": "torchvision.models.resnet18",
        "ppl_med.models.BayesianClasifier": "ppl_med.models.BayesianClassifier",
        "monai.networks.net.UNet": "monai.networks.nets.UNet",
    }.items():
        with pytest.raises(ValueError, match=f"did you mean '{right}'"):
            resolve(wrong)


def test_a_module_of_ones_own_is_named_once_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts").mkdir()
    (tmp_path / "own_parts/__init__.py").write_text(
        "import os\nfrom os import system\nfrom torch import load\nfrom own_parts.nets import Net\n"
        "def build(width: int): return width\n_secret = build\n"
    )
    (tmp_path / "own_parts/nets.py").write_text("class Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match="if own_parts is a module of yours, allow it: --allow own"
    ):
        resolve("own_parts.Net")
    assert "own_parts" not in sys.modules
    assert resolve("own_parts.Net", ["own_parts"]).__name__ == "Net"
    assert resolve("own_parts.nets.Net", ["own_parts"]).__name__ == "Net"
    assert resolve("own_parts.build", ["own_parts"])(2) == 2
    for name in ("system", "load", "os", "_secret", "nets.Nett", "os.system", "missing"):
        with pytest.raises((ValueError, ModuleNotFoundError)):
            resolve(f"own_parts.{name}", ["own_parts"])


@pytest.mark.parametrize("module", ["os", "torch", "torch.hub", "monai", "subprocess", "builtins"])
def test_packages_of_others_cannot_be_allowed_whole(module: str) -> None:
    with pytest.raises(ValueError, match="name modules of your own"):
        check_allowed([module])


@pytest.mark.parametrize("name", SENDERS)
def test_what_sends_figures_elsewhere_is_allowed_by_its_own_name(name: str) -> None:
    for allow in ((), ("own_module",), tuple(one for one in SENDERS if one != name)):
        with pytest.raises(ValueError, match=f"sends the figures .* --allow {name}"):
            resolve(name, allow)
    assert resolve(name, [name]).__name__ == name.rpartition(".")[2]
    for other in ("ppl_med.inference.fit", "ppl_med.inference.CsvLogger"):
        with pytest.raises(ValueError, match="name modules of your own"):
            check_allowed([other])


# ------------------------------------------------------------------------------- components


@pytest.mark.parametrize("path", ["/etc/log.csv", "../log.csv", "a/../../log.csv", ".", "", 3])
@pytest.mark.parametrize("marker", ["name", "function"])
def test_a_logger_writes_into_the_folder_of_the_run_alone(
    path: Any, marker: str, tmp_path: Path
) -> None:
    for name, key in PLACES_TO_WRITE.items():
        with pytest.raises(ValueError, match=rf"^fit\.{key} must be a path inside the folder of"):
            Builder(folder=tmp_path / "run")({marker: name, key: path}, "fit")
    log = Builder(folder=tmp_path)({"name": "ppl_med.inference.CsvLogger", "path": "a/b.csv"}, "x")
    assert log.path == tmp_path / "a/b.csv"


def test_components_are_called_with_what_stands_beside_their_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUN_ROOT", "/data")
    layers = [
        {"name": "torch.nn.Flatten"},
        {"name": "torch.nn.Linear", "in_features": 4, "out_features": 2},
    ]
    built = Builder()(
        {
            "net": {"name": "torch.nn.Sequential", "args": layers},
            "make": {"function": "torch.optim.SGD", "lr": 0.5},
            "kind": {"function": "torch.nn.Linear"},
            "path": "${RUN_ROOT}/cells",
            "numbers": [1, 2.5, None, True],
        },
        "config",
    )
    assert [type(one) for one in built["net"]] == [torch.nn.Flatten, torch.nn.Linear]
    assert built["make"](built["net"].parameters()).param_groups[0]["lr"] == 0.5
    assert built["kind"] is torch.nn.Linear
    assert (built["path"], built["numbers"]) == ("/data/cells", [1, 2.5, None, True])


def test_lists_of_a_file_are_tuples_where_a_reader_takes_those(tmp_path: Path) -> None:
    part = {"name": "ppl_med.data.from_table", "table": str(tmp_path / "none.csv")}
    settings = {"size": [16, 16], "spacing": [1.0, 1.0], "window": [40.0, 400.0]}
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        Builder()({**part, **settings}, "data.source")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"name": "torch.nn.Linear", "in_feature": 4},
            "no 'in_feature'; did you mean 'in_features'",
        ),
        (
            {"name": "torch.nn.Linear", "in_features": 4},
            "missing a required argument: 'out_features'",
        ),
        ({"name": "torchvision.models.resnet18", "num_clases": 2}, "did you mean 'num_classes'"),
        ({"name": "ppl_med.weights.Normal", "scale": -1}, r"scale must be .* got -1"),
        ({"name": "torch.nn.Sequential", "args": 3}, "must be a list"),
        ({"name": "torch.nn.Linear", "function": "torch.nn.Linear"}, "has both"),
        ({"path": "${NOWHERE_SET}"}, "the environment has no NOWHERE_SET"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(part: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Builder()({"net": part}, "config")
    assert "config.net" in str(caught.value)


# MONAI speaks of decoders that it does not find.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "reader", ["os.system", "evil_reader", "evil_reader.Reader", ["evil_reader"]]
)
def test_no_reader_is_imported_from_wherever_the_file_says(
    reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI imports a reader that it does not know by its path."""
    (tmp_path / "evil_reader.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    part = {"name": "monai.transforms.LoadImaged", "keys": ["image"], "reader": reader}
    with pytest.raises(ValueError, match=r"transform\.reader names monai\.data\."):
        Builder()(part, "transform")
    assert not (tmp_path / "ran").exists()
    part["reader"] = "NumpyReader"
    assert Builder()(part, "transform").keys == ("image",)


class Payload:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("allow", [True, 1, "yes"])
def test_no_file_is_unpickled_because_the_description_asks_for_it(
    allow: Any, tmp_path: Path
) -> None:
    array = np.array([Payload(tmp_path / "ran")], dtype=object)
    np.save(tmp_path / "image.npy", array)
    for part in (
        {"name": "monai.data.NumpyReader", "allow_pickle": allow},
        {"name": "monai.transforms.LoadImage", "reader": "NumpyReader", "allow_pickle": allow},
        {"name": "monai.data.PersistentDataset", "weights_only": 0, "data": [], "transform": []},
    ):
        with pytest.raises(ValueError, match="a file could then run code"):
            Builder()(part, "data")
    load = Builder()({"name": "monai.transforms.LoadImage", "reader": "NumpyReader"}, "data")
    with pytest.raises((RuntimeError, ValueError)):
        load(tmp_path / "image.npy")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------- YAML


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = "[no, yes, on, off, true, 1e-3, 3, -2.5, 1_000, 0o7, 12:30, 2020-01-02, ~, '1', .5, 1.]"
    assert parse_yaml(text) == [
        "no", "yes", "on", "off", True, 1e-3, 3, -2.5, "1_000", "0o7", "12:30", "2020-01-02",
        None, "1", 0.5, 1.0,
    ]  # fmt: skip


def test_what_is_written_is_read_back() -> None:
    content = {
        "a": ["no", "1e-3", "3", 3, 0.1, 1e-7, 1e22, None, True, "true", "null", "", "ü: #x"],
        "b": {},
    }
    content["c"] = content["a"]
    assert parse_yaml(as_yaml(content)) == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' stands there twice"),
        ("1: a\n", "line 1: the key 1 must be text"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("a: [1\n", "no plain YAML"),
        ("[" * 1500, "no plain YAML"),
    ],
)
def test_yaml_that_is_no_plain_data_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


def test_a_merged_key_may_be_replaced() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
    }


def test_builders_of_torchvision_are_those_it_lists() -> None:
    names = set(names_in(torchvision.models, "torchvision.models"))
    assert names <= set(torchvision.models.list_models())
    assert {"resnet18", "vit_b_16", "alexnet"} <= names
