"""Real films: the phantoms' detectors, trained on for a while on the 29 there are."""

from typing import Any

import numpy as np
import xarray as xr

from chest_boxes.study import COLUMNS, MAIN, SIZE, Study
from ppl_med import storage
from ppl_med.analysis import detection
from ppl_med.data import Batches, MoveWithBoxes, load_cxr_lesion_boxes
from ppl_med.inference import PointEstimate, fit, load

CLASSES = ("Ground_Glass_Opacities", "Consolidation")  # in the places of the phantoms' two


def fine_tuned(study: Study) -> tuple[xr.DataTree, dict[str, Any]]:
    """What the members of the first seed, trained on, say of the films kept apart; and these."""
    options = study.options
    splits = load_cxr_lesion_boxes(
        options.data, size=(SIZE, SIZE), classes=list(CLASSES), degenerate="drop"
    )
    films = {part: {name: arrays[name] for name in COLUMNS} for part, arrays in splits.items()}
    pixels = films["train"]["image"] / 255.0
    standard = {"loc": float(pixels.mean()), "scale": float(pixels.std())}
    val = Batches(films["val"], batch_size=8, **standard)
    path = study.folder / "posterior-cxr-lesions.nc"
    if not path.exists():
        seed, trees = options.seeds[0], []
        for number in range(options.members):
            study.member(MAIN, seed, number)
            model = study.detector(1000 * seed + number, CLASSES)
            guide = PointEstimate(model)
            load(study.checkpoint(MAIN, seed, number), model, guide)
            train = Batches(
                films["train"], batch_size=8, shuffle=True, seed=number,
                transform=MoveWithBoxes(shift=options.shift, factor=1.15), **standard,
            )  # fmt: skip
            fit(
                model, guide, train, epochs=1 if options.smoke else 60, schedule="cosine",
                learning_rate=options.rate / 2, seed=1 + number, device=options.device,
                progress=False,
            )  # fmt: skip
            trees.append(study.predicted(model, guide, val))
        storage.save(storage.join_chains(trees), path)
    return detection.objects(storage.load(path)), films["val"]


def describe(tree: xr.DataTree) -> str:
    """How many there are: too few to rank anything."""
    objects = tree["objects"].to_dataset()
    sure = int((objects["p_exists"] >= 0.5).sum())
    true = int((tree["observed_data"]["box_label"] >= 0).sum())
    number = np.size(objects["case"])
    return f"{number} real films, {true} boxes, {sure} objects with p(exists) >= 0.5"
