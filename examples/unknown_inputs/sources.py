"""What a net is trained on, and what it is then shown that it has never seen.

Every source has training, validation and test cases and sets from elsewhere:

    far          another kind of picture altogether
    near         the same kind of picture from elsewhere: another hospital, age, cell, laboratory
    covariate    its own test cases, made worse (``ppl_med.data.shifts.corrupt``)

Covariate-shifted cases are one half of the test part, by patient, and are compared with the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.networks.nets.unet import UNet
from torch import nn
from torchvision.transforms.v2 import functional as image_functions

from ppl_med.data import load_hippocampus, load_malaria, load_pneumoniamnist, load_wbc_seg
from ppl_med.data.readers import from_table, load_voc_boxes
from ppl_med.data.readers.wbc_seg import CLASS_NAMES as CELL_PARTS
from ppl_med.data.shifts import corrupt
from ppl_med.networks import CompactCNN
from unknown_inputs.digit_files import read_idx

Arrays = dict[str, Any]
GREY = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601
MOST_TRAIN, MOST_CASES = 2000, 300
PLANTED = {"worse contrast": ("contrast_down", 3), "blurred": ("gaussian_blur", 3)}


@dataclass
class Source:
    """Cases of one kind and those from elsewhere, as arrays for ``Batches``.

    Args:
        parts: "train", "val", "test".
        unlike: By name, the kind and the cases.
        classes: Names.
        net: Makes a new network.
        layers: Layers whose features are kept, the last one nearest to the output.
        epochs: Of training.
        rate: Learning rate.
        members: Nets of the ensemble.
        medical: Whether its pairs count among the medical ones.
    """

    parts: dict[str, Arrays]
    unlike: dict[str, tuple[str, Arrays]]
    classes: tuple[str, ...]
    net: Callable[[], nn.Module]
    layers: tuple[str, ...]
    epochs: int
    rate: float = 1e-3
    members: int = 5
    medical: bool = True
    batch_size: int = 64
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def observation(self) -> str:
        """Name of what is predicted."""
        return "mask" if "mask" in self.parts["train"] else "label"


def take(arrays: Arrays, rows: np.ndarray) -> Arrays:
    """Some of the cases."""
    return {name: value[rows] for name, value in arrays.items()}


def some(arrays: Arrays, number: int, seed: int = 0) -> Arrays:
    """At most so many cases, drawn at random."""
    total = len(arrays["image"])
    if total <= number:
        return arrays
    rows = np.random.default_rng(seed).choice(total, number, replace=False)
    return take(arrays, np.sort(rows))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pictures (case, channel, row, col) of another size, uint8."""
    found = image_functions.resize(torch.as_tensor(image), list(size), antialias=True)
    return np.asarray(found, np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    """Pictures of one channel, (case, 1, row, col), uint8."""
    if image.shape[1] == 1:
        return image
    weights = np.array(GREY)[:, None, None]
    return (image * weights).sum(1, keepdims=True).round().astype(np.uint8)


def elsewhere(arrays: Arrays, name: str, size: tuple[int, int] | None = None) -> Arrays:
    """Images and ids, grey and of another size where wanted, the ids marked by a name."""
    image = arrays["image"]
    if size is not None:
        image = resized(grey(image), size)
    people = arrays.get("patient", arrays["id"])
    return {
        "image": image,
        "id": np.array([f"{name}/{one}" for one in arrays["id"]]),
        "patient": np.array([f"{name}/{one}" for one in people]),
    }


def made_worse(test: Arrays, planted: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """A half of the test cases, by patient, under each of the named corruptions."""
    people = test.get("patient", test["id"])
    names = np.random.default_rng(0).permutation(np.unique(people))
    other = take(test, np.flatnonzero(np.isin(people, names[len(names) // 2 :])))
    found = {}
    for title, (name, severity) in planted.items():
        image = np.concatenate(
            [corrupt(one[None], name, severity, seed=row, span=_span(one))
             for row, one in enumerate(other["image"])]
        )  # fmt: skip
        found[title] = ("covariate", elsewhere(other | {"image": image}, title))
    return found


def _span(image: np.ndarray) -> tuple[float, float] | None:
    return None if image.dtype == np.uint8 else (float(image.min()), float(image.max()))


def digits(data: Path) -> Source:
    """MNIST, against letters of notMNIST."""
    train, test = (read_idx(data / "mnist", part) for part in ("train", "t10k"))
    order = np.random.default_rng(0).permutation(len(train["image"]))
    inside = some(test, 2 * MOST_CASES)
    letters = some(read_idx(data / "notmnist", "t10k"), MOST_CASES)
    return Source(
        {
            "train": take(train, order[1000 : 1000 + MOST_TRAIN]),
            "val": take(train, order[:1000]),
            "test": inside,
        },
        {"letters": ("far", elsewhere(letters, "letters")), **made_worse(inside, PLANTED)},
        tuple("0123456789"),
        lambda: CompactCNN(1, 10, width=16),
        ("features.2", "features.5", "features.8", "features.10"),
        epochs=10,
        rate=2e-3,
        medical=False,
    )


def children(data: Path) -> Source:
    """Chest X-rays of children, against those of adults and against blood cells."""
    splits = load_pneumoniamnist(data)
    inside = some(splits["test"], 2 * MOST_CASES)
    films, cells = adults(data, (28, 28)), load_malaria(data)["test"]
    return Source(
        {"train": some(splits["train"], MOST_TRAIN), "val": splits["val"], "test": inside},
        {
            "adults": ("near", elsewhere(films["test"], "adults")),
            "blood cells": ("far", elsewhere(some(cells, MOST_CASES), "cells", (28, 28))),
            **made_worse(inside, PLANTED),
        },
        ("normal", "pneumonia"),
        lambda: CompactCNN(1, 2, width=16),
        ("features.2", "features.5", "features.8", "features.10"),
        epochs=10,
        rate=2e-3,
    )


def adults(data: Path, size: tuple[int, int]) -> dict[str, Arrays]:
    """Chest X-rays of the NIH by split, and "second source": films of other hospitals."""
    place = data / "cxr_nih"
    rows = [
        {"path": f"{split}/{kind}/{one.name}", "label": kind, "split": split,
         "patient": one.stem.split("_")[0]}
        for split in ("train", "val", "test")
        for kind in ("No_findings", "Pneumonia")
        for one in sorted((place / split / kind).glob("*.jpg"))
    ]  # fmt: skip
    found: dict[str, Arrays] = dict(
        from_table(pd.DataFrame(rows), place, size=size, channels=1, site=None)
    )
    (listed,) = place.glob("ood_*/index.csv")
    people = pd.read_csv(listed).set_index("file")["patientid"]
    other = [
        {"path": one.name, "patient": f"other {people.get(one.name, one.stem)}", "split": "test"}
        for one in sorted(listed.parent.glob("*.jpg"))
    ]
    second = from_table(
        pd.DataFrame(other), listed.parent, size=size, channels=1, label=None, site=None
    )
    return found | {"second source": second["test"]}


def films(data: Path) -> Source:
    """Chest X-rays of the NIH, against films of other hospitals, of children, and cells."""
    size = (48, 48)
    splits = adults(data, size)
    young = some(load_pneumoniamnist(data)["test"], MOST_CASES)
    cells = some(load_malaria(data)["test"], MOST_CASES)
    inside = splits["test"]
    return Source(
        {"train": splits["train"], "val": splits["val"], "test": inside},
        {
            "second source": ("near", elsewhere(splits["second source"], "second")),
            "children": ("near", elsewhere(young, "children", size)),
            "blood cells": ("far", elsewhere(cells, "cells", size)),
            **made_worse(inside, PLANTED),
        },
        ("no finding", "pneumonia"),
        lambda: CompactCNN(1, 2, width=16),
        ("features.2", "features.5", "features.8", "features.10"),
        epochs=20,
        rate=2e-3,
    )


def malaria(data: Path) -> Source:
    """Red cells with and without parasites, against red and white cells of other laboratories."""
    splits = load_malaria(data)
    size = (50, 50)
    inside = some(splits["test"], 2 * MOST_CASES)
    red, white = boxed_cells(data, "RBC"), load_wbc_seg(data, size=(128, 128))["train"]
    return Source(
        {
            "train": some(splits["train"], MOST_TRAIN),
            "val": some(splits["val"], 1000),
            "test": inside,
        },
        {
            "red cells elsewhere": ("near", elsewhere(some(red, MOST_CASES), "red", size)),
            "white cells": ("near", elsewhere(some(white, MOST_CASES), "white", size)),
            **made_worse(inside, PLANTED),
        },
        ("uninfected", "parasitized"),
        lambda: CompactCNN(1, 2, width=16),
        ("features.2", "features.5", "features.8", "features.10"),
        epochs=10,
        rate=2e-3,
    )


def boxed_cells(data: Path, kind: str, side: int = 128, margin: float = 0.1) -> Arrays:
    """Cells of BCCD cut out along their boxes, (case, 3, side, side) uint8."""
    kinds = ("RBC", "WBC", "Platelets")
    found = load_voc_boxes(data, size=(480, 640), classes=kinds, degenerate="drop")
    wanted = kinds.index(kind)
    images, ids, pictures = [], [], []
    for one in (found["val"],):
        for row, picture in enumerate(one["image"]):
            for number in np.flatnonzero(one["box_label"][row] == wanted):
                left, top, right, bottom = one["box"][row, number]
                half = (0.5 + margin) * max(right - left, bottom - top)
                middle = ((top + bottom) / 2, (left + right) / 2)
                (up, down), (near, far) = (
                    (max(0, int(at - half)), min(most, int(at + half)))
                    for at, most in zip(middle, picture.shape[1:], strict=True)
                )
                images.append(resized(picture[None, :, up:down, near:far], (side, side))[0])
                ids.append(f"{one['id'][row]}-{number}")
                pictures.append(str(one["id"][row]))
    return {"image": np.stack(images), "id": np.array(ids), "patient": np.array(pictures)}


def white_cells(data: Path, second_site: Path | None = None) -> Source:
    """White cells with their masks, against those of other laboratories."""
    size = (64, 64)
    splits = load_wbc_seg(data, size=(128, 128), second_site=second_site)
    small = {name: _shrunk(part, size) for name, part in splits.items()}
    other = boxed_cells(data, "WBC", margin=0.3)
    unlike = made_worse(small["test"], {"stained": ("stain", 4), "blurred": ("gaussian_blur", 3)})
    unlike["cells of BCCD"] = (
        "near",
        elsewhere(other, "bccd") | {"image": resized(other["image"], size)},
    )
    if second_site is not None:
        unlike["second laboratory"] = ("near", elsewhere(small["second_site"], "second"))
    return Source(
        {"train": small["train"], "val": small["val"], "test": small["test"]},
        unlike,
        CELL_PARTS,
        lambda: UNet(2, 3, 3, (16, 32, 64), (2, 2), norm="batch"),
        ("model.0", "model.1.submodule.0", "model.1.submodule.1.submodule"),
        epochs=30,
        rate=3e-3,
        batch_size=16,
    )


def _shrunk(part: Arrays, size: tuple[int, int]) -> Arrays:
    """Pictures and masks at half the size: pictures averaged, of masks every second pixel."""
    step = part["mask"].shape[1] // size[0]
    return part | {
        "image": resized(part["image"], size),
        "mask": np.ascontiguousarray(part["mask"][:, ::step, ::step]),
    }


def hippocampus(data: Path) -> Source:
    """MR volumes of the hippocampus, against a worse contrast and a lower resolution."""
    splits = load_hippocampus(data, size=(40, 56, 32), standardize=False)
    kept = {name: _halved(part) for name, part in splits.items()}
    planted = {"contrast": ("gamma_down", 4), "resolution": ("pixelate", 4)}
    unlike = made_worse(kept["test"], planted)
    for part in (*kept.values(), *(arrays for _, arrays in unlike.values())):
        part["image"] = _standardized(part["image"])
    return Source(
        {"train": kept["train"], "val": kept["val"], "test": kept["test"]},
        unlike,
        ("background", "anterior", "posterior"),
        lambda: UNet(3, 1, 3, (12, 24, 48), (2, 2), norm="batch"),
        ("model.0", "model.1.submodule.0", "model.1.submodule.1.submodule"),
        epochs=20,
        rate=3e-3,
        batch_size=8,
        members=3,
        settings={"spatial_dims": 3},
    )


def _halved(part: Arrays) -> Arrays:
    """Volumes averaged over 2 x 2 x 2 voxels, of masks every second voxel."""
    image = torch.nn.functional.avg_pool3d(torch.as_tensor(part["image"]), 2).numpy()
    mask = np.ascontiguousarray(part["mask"][:, ::2, ::2, ::2])
    return {"image": image, "mask": mask, "id": part["id"]}


def _standardized(image: np.ndarray) -> np.ndarray:
    """Every volume with mean 0 and standard deviation 1, as the reader gives it."""
    space = tuple(range(1, image.ndim))
    scale = image.std(space, keepdims=True)
    return ((image - image.mean(space, keepdims=True)) / scale).astype(np.float32)


SOURCES: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "children": children,
    "malaria": malaria,
    "films": films,
    "white_cells": white_cells,
    "hippocampus": hippocampus,
}
