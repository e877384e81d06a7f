"""Start a network from a checkpoint file: torchvision's, MONAI's, or another's.

Nothing in a file is executed: ``.safetensors``, or what ``torch.load(weights_only=True)`` reads.
Names may have a prefix on either side (``module.``, ``net.backbone.``) and the tensors may stand
inside ``state_dict`` or the like.
"""

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.checks import a_path, finite

SHOWN = 5


@dataclass(frozen=True)
class Fitted:
    """Which names of a file and of a network fitted each other.

    Attributes:
        fitted: Names in the network that were given a value.
        reshaped: Names in the network whose value in the file has another shape, with the two
            shapes: in the file, in the network. They are as they were.
        missing: Names in the network that the file lacks. They are as they were.
        unused: Names in the file that the network lacks.
    """

    fitted: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.fitted)} tensors fitted"]
        for name, (theirs, ours) in self.reshaped.items():
            lines.append(f"{name} has shape {theirs} in the file and {ours} in the net: left")
        for names, what in (
            (self.missing, "in the net only, left as they were"),
            (self.unused, "in the file only, not used"),
        ):
            if names:
                more = f" … ({len(names)} in all)" if len(names) > SHOWN else ""
                lines.append(f"{what}: {', '.join(names[:SHOWN])}{more}")
        return "\n".join(lines)


def load_pretrained(
    net: nn.Module, path: str | os.PathLike[str], *, sum_channels: bool = False, least: float = 0.5
) -> Fitted:
    """Copy the tensors of a checkpoint file into a network, before it becomes random.

        net = resnet18(num_classes=2)
        print(load_pretrained(net, "resnet18-f37072fd.pth"))
        model = BayesianClassifier(net, classes, prior=Normal(0.1, loc="pretrained"))

    Args:
        net: The network, changed in place.
        path: The file.
        sum_channels: Whether a convolution of one channel takes the sum over the channels of the
            file's, as for grey images in a net of colour images: the output for equal channels
            stays the same.
        least: Share of the network's numbers that must be found in the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is of safetensors, and that package is missing.
        ValueError: If it holds other things than tensors, or too little fits.
    """
    finite("least", least, least=0, most=1)
    path = a_path("path", path)
    found, own = _tensors(_read(path), path), net.state_dict()
    own = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    theirs = _renamed(found, own)
    fitted: dict[str, Tensor] = {}
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for name in own.keys() & theirs.keys():
        value, ours = theirs[name], own[name]
        if sum_channels and value.dim() > 2 and _in_one_channel(value.shape) == ours.shape:
            value = value.sum(1, keepdim=True)
        if value.shape == ours.shape:
            fitted[name] = value
        else:
            reshaped[name] = (tuple(value.shape), tuple(ours.shape))
    missing = [n for n in own if n not in theirs and not n.endswith("num_batches_tracked")]
    report = Fitted(
        tuple(name for name in own if name in fitted),
        {name: reshaped[name] for name in own if name in reshaped},
        tuple(missing),
        tuple(name for name in theirs if name not in own),
    )
    share = sum(own[n].numel() for n in fitted) / max(sum(v.numel() for v in own.values()), 1)
    if not fitted or share < least:
        raise ValueError(
            f"checkpoint {path} fits {share:.0%} of the numbers of {type(net).__name__}, and "
            f"least={least:g} is asked for; it is of another network, or its names differ. "
            f"{report}"
        )
    net.load_state_dict(fitted, strict=False)
    return report


def _in_one_channel(shape: torch.Size) -> torch.Size:
    return torch.Size((shape[0], 1, *shape[2:]))


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(
                "a .safetensors file needs the package 'safetensors', which is not installed: "
                "pip install safetensors"
            ) from error
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint {path} is damaged: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged, or holds code beside tensors, which is never run "
            f"({type(error).__name__}); where you trust it, save its tensors alone: "
            "torch.save(model.state_dict(), path)"
        ) from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in a file that has most of them."""
    best: dict[str, Tensor] = {}
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            own = {name: v for name, v in one.items() if isinstance(v, Tensor)}
            best = own if len(own) > len(best) else best
            waiting += [value for value in one.values() if isinstance(value, Mapping)]
    if not best:
        raise ValueError(f"checkpoint {path} holds no named tensors; save model.state_dict()")
    return best


def _renamed(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors without its prefix and with the network's, where most names then fit."""

    def renamed(cut: str, put: str) -> dict[str, Tensor]:
        return {f"{put}{n[len(cut) :]}": v for n, v in found.items() if n.startswith(cut)}

    tried = [(cut, "") for cut in _prefixes(found)] + [("", put) for put in _prefixes(own)]
    cut, put = max(tried, key=lambda pair: len(renamed(*pair).keys() & own.keys()))
    left = {name: value for name, value in found.items() if not name.startswith(cut)}
    return {**left, **renamed(cut, put)}


def _prefixes(names: Mapping[str, Any]) -> list[str]:
    """Nothing, and all that names begin with up to a dot, the shortest first."""
    found = {name[: i + 1] for name in names for i, letter in enumerate(name) if letter == "."}
    return ["", *sorted(found, key=lambda prefix: (len(prefix), prefix))]
