"""Networks that start from a checkpoint file: what fits is copied, what does not is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from ppl_med.weights import load_pretrained


def small(classes: int = 3, channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.backbone = net


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def write(path: Path, tensors: Any) -> Path:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


WRITTEN: dict[str, Any] = {
    "as it is": lambda found: found,
    "parallel": lambda found: {f"module.{name}": value for name, value in found.items()},
    "inside": lambda found: {"epoch": 3, "optimizer": {"lr": 0.1}, "state_dict": found},
    "lightning": lambda found: {"state_dict": {f"net.0.{n}": v for n, v in found.items()}},
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("into", [lambda net: net, Wrapped], ids=["net", "inside a net"])
def test_names_fit_whatever_stands_before_them(name: str, into: Any, tmp_path: Path) -> None:
    source, target = small(), small()
    path = write(tmp_path / "net.pth", WRITTEN[name](state(source)))
    if into is Wrapped and name in ("lightning", "parallel"):
        with pytest.raises(ValueError, match="its names differ"):
            load_pretrained(into(target), path)
        return
    report = load_pretrained(into(target), path)
    assert all(torch.equal(state(source)[n], value) for n, value in state(target).items())
    assert len(report.fitted) == len(state(target)) and not report.missing and not report.unused


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: squeezenet1_1(num_classes=5),
        lambda: UNet(2, 1, 2, channels=(4, 8), strides=(2,), norm="batch"),
    ],
    ids=["torchvision", "monai"],
)
def test_checkpoints_of_others_are_read(make: Any, suffix: str, tmp_path: Path) -> None:
    source, target = make(), make()
    load_pretrained(target, write(tmp_path / f"net{suffix}", state(source)))
    assert all(torch.equal(state(source)[n], value) for n, value in state(target).items())


def test_a_head_of_other_classes_is_left_and_told(tmp_path: Path) -> None:
    source, target = small(classes=10), small(classes=2)
    before = state(target)
    tensors = {**state(source), "aux.weight": torch.ones(2)}
    del tensors["1.bias"]
    report = load_pretrained(target, write(tmp_path / "net.pt", tensors))
    after = state(target)
    assert dict(report.reshaped) == {"4.weight": ((10, 16), (2, 16)), "4.bias": ((10,), (2,))}
    assert report.missing == ("1.bias",) and report.unused == ("aux.weight",)
    for name in ("4.weight", "4.bias", "1.bias"):
        assert torch.equal(before[name], after[name])
    assert torch.equal(after["0.weight"], tensors["0.weight"])
    told = str(report)
    assert "4.weight has shape (10, 16) in the file and (2, 16) in the net" in told
    assert "in the file only, not used: aux.weight" in told


def test_grey_images_take_the_sum_over_colours(tmp_path: Path) -> None:
    source, target = small().eval(), small(channels=1).eval()
    path = write(tmp_path / "net.pt", state(source))
    assert "0.weight" in load_pretrained(target, path).reshaped
    load_pretrained(target, path, sum_channels=True)
    grey = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(target(grey), source(grey.expand(-1, 3, -1, -1)))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    target = small()
    before = state(target)
    other = write(tmp_path / "other.pt", state(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="fits 0% of the numbers of Sequential"):
        load_pretrained(target, other)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_pretrained(target, tmp_path / "none.pt")
    torch.save(small(), tmp_path / "code.pt")
    with pytest.raises(ValueError, match="holds code beside tensors, which is never run"):
        load_pretrained(target, tmp_path / "code.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is damaged"):
        load_pretrained(target, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="no named tensors"):
        load_pretrained(target, write(tmp_path / "list.pt", [torch.ones(2)]))
    assert all(torch.equal(before[name], value) for name, value in state(target).items())
