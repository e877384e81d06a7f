"""MedMNIST: eighteen small data sets of medical images, of one size each, in 2D and 3D.

Read from ``<name>.npz`` or ``<name>_<size>.npz`` as MedMNIST distributes them (28; 64, 128 and 224
pixels in 2D, 64 in 3D); each holds for the splits "train", "val" and "test":

    <split>_images   uint8 (case, row, col), (case, row, col, 3) or (case, depth, row, col)
    <split>_labels   integers (case, 1) or (case); of chestmnist 0 or 1 (case, finding=14)

The splits are the file's own. No file says which patient a picture is of, so whether two splits
share one cannot be checked here.

Reference: Yang et al., "MedMNIST v2", Scientific Data 10, 2023 (classes as in its version 3.0).
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import a_path, choice, reject
from ppl_med.data.readers.array_files import read_npz
from ppl_med.data.readers.folders import SPLITS
from ppl_med.data.readers.named_splits import Splits

SIZES = (28, 64, 128, 224)
_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver",
    "lung-left", "lung-right", "pancreas", "spleen",
)  # fmt: skip


@dataclass(frozen=True)
class MedMNISTSet:
    """What a data set of MedMNIST is about.

    Args:
        classes: Names of the classes, in the order of their numbers; of findings where several may
            be there.
        likelihood: "categorical", "bernoulli", "ordinal" or "findings"; see ``Splits``.
        channels: 1 for grey, 3 for colours.
        dims: 2 or 3 axes of space.
    """

    classes: tuple[str, ...]
    likelihood: str = "categorical"
    channels: int = 1
    dims: int = 2


MEDMNIST = {
    "pathmnist": MedMNISTSet(
        (
            "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle",
            "normal colon mucosa", "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        channels=3,
    ),
    "chestmnist": MedMNISTSet(
        (
            "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule",
            "pneumonia", "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis",
            "pleural", "hernia",
        ),
        "findings",
    ),
    "dermamnist": MedMNISTSet(
        (
            "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma",
            "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi",
            "vascular lesions",
        ),
        channels=3,
    ),
    "octmnist": MedMNISTSet(
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")
    ),
    "pneumoniamnist": MedMNISTSet(("normal", "pneumonia"), "bernoulli"),
    "retinamnist": MedMNISTSet(("0", "1", "2", "3", "4"), "ordinal", channels=3),
    "breastmnist": MedMNISTSet(("malignant", "normal, benign"), "bernoulli"),
    "bloodmnist": MedMNISTSet(
        (
            "basophil", "eosinophil", "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "lymphocyte",
            "monocyte", "neutrophil", "platelet",
        ),
        channels=3,
    ),
    "tissuemnist": MedMNISTSet(
        (
            "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule",
            "Glomerular endothelial cells", "Interstitial endothelial cells", "Leukocytes",
            "Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb",
        )
    ),
    "organamnist": MedMNISTSet(_ORGANS),
    "organcmnist": MedMNISTSet(_ORGANS),
    "organsmnist": MedMNISTSet(_ORGANS),
    "organmnist3d": MedMNISTSet(
        (
            "liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder",
            "heart", "lung-right", "lung-left", "spleen", "pancreas",
        ),
        dims=3,
    ),
    "nodulemnist3d": MedMNISTSet(("benign", "malignant"), "bernoulli", dims=3),
    "adrenalmnist3d": MedMNISTSet(("normal", "hyperplasia"), "bernoulli", dims=3),
    "fracturemnist3d": MedMNISTSet(
        ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"), dims=3
    ),
    "vesselmnist3d": MedMNISTSet(("vessel", "aneurysm"), "bernoulli", dims=3),
    "synapsemnist3d": MedMNISTSet(
        ("inhibitory synapse", "excitatory synapse"), "bernoulli", dims=3
    ),
}  # fmt: skip


def load_medmnist(folder: str | PathLike[str], name: str, *, size: int = 28) -> Splits:
    """Read the three splits of one data set.

    Args:
        folder: Holds the file, itself or in a subfolder of the data set's name; or is the file.
        name: Which data set, such as "chestmnist", one of ``MEDMNIST``.
        size: Pixels along each axis, one of 28, 64, 128 and 224.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel, [depth,] row, col);
        "label" int64 (case), or "findings" int8 (case, finding) where several may be there, as the
        site of ``FindingsClassifier``; "id" str (case) as "<split>-<row in the file>".
        ``classes`` of the result are the names, and ``likelihood`` what ``BayesianClassifier``
        takes: "ordinal" for grades, "bernoulli" for two classes.

    Raises:
        FileNotFoundError: There is no such folder or no such file in it.
        ValueError: The file is not as described above, or an argument is out of range.
    """
    choice("name", name, MEDMNIST)
    choice("size", size, SIZES)
    path = _place(folder, f"{name}.npz" if size == SIZES[0] else f"{name}_{size}.npz", name)
    kind = MEDMNIST[name]
    names = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    arrays = read_npz(path, names)
    splits = {}
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        image = _images(path, split, images, kind, size)
        observed = _observed(path, split, labels, len(images), kind)
        ids = np.array([f"{split}-{row:05d}" for row in range(len(images))])
        splits[split] = {"image": image, **observed, "id": ids}
    return Splits(splits, kind.classes, kind.likelihood)


def _place(folder: str | PathLike[str], file: str, name: str) -> Path:
    root = a_path("folder", folder)
    if root.is_file():
        if root.name != file:
            reject("folder", f"a folder or a file called {file}", str(root))
        return root
    if not root.is_dir():
        raise FileNotFoundError(f"folder {str(root)!r} is not there")
    for place in (root, root / name, root / "medmnist"):
        if (place / file).is_file():
            return place / file
    there = sorted(one.name for one in root.glob(f"**/{name}*.npz"))
    raise FileNotFoundError(
        f"folder {str(root)!r} has neither {file} nor {name}/{file}; "
        f"of this data set it has {there}: download it from medmnist.com, or give size="
    )


def _images(
    path: Path, split: str, images: NDArray[Any], kind: MedMNISTSet, size: int
) -> NDArray[np.uint8]:
    shape = (size,) * kind.dims + ((3,) if kind.channels == 3 else ())
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
        raise ValueError(
            f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 "
            f"(case, {', '.join(map(str, shape))})"
        )
    return np.moveaxis(images, -1, 1) if kind.channels == 3 else images[:, None]


def _observed(
    path: Path, split: str, labels: NDArray[Any], num_cases: int, kind: MedMNISTSet
) -> dict[str, NDArray[Any]]:
    if len(labels) != num_cases:
        raise ValueError(f"{path}: {split} has {num_cases} images but {len(labels)} labels")
    several = kind.likelihood == "findings"
    shape = (num_cases, len(kind.classes) if several else 1)
    if labels.dtype.kind not in "biu" or labels.size != np.prod(shape):
        raise ValueError(
            f"{path}: {split}_labels is {labels.dtype} {labels.shape}; expected integers {shape}"
        )
    most = 1 if several else len(kind.classes) - 1
    if labels.min() < 0 or labels.max() > most:
        raise ValueError(f"{path}: {split}_labels holds {np.unique(labels)}; expected 0 to {most}")
    if several:
        return {"findings": labels.reshape(shape).astype(np.int8)}
    return {"label": labels.reshape(-1).astype(np.int64)}
