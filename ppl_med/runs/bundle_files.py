"""A run as a MONAI Bundle: a folder that MONAI's own runner predicts with, and a card for readers.

    configs/metadata.json     what MONAI's schema asks for: versions, task, shapes, figures
    configs/inference.json    ``python -m monai.bundle run --config_file configs/inference.json``
    configs/run.yaml          the run's description, and run.json, its record
    models/model.safetensors  weights of model and guide
    docs/README.md            model card

    images of @dataset_dir -> @preprocessing -> predict -> maps (NIfTI) or a table in @output_dir

MONAI runs whatever an inference.json says, so run only bundles that you trust; ``load_bundle``
reads the run alone, and runs no code from the folder.

Reference: https://docs.monai.io/en/stable/mb_specification.html. Departs from it: there is no
``models/model.pt``. Its tools would copy it into a network by itself, but what was learned is the
distribution that the guide holds, and a network without it predicts by its start values.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from ppl_med import storage
from ppl_med.checks import a_path
from ppl_med.runs.bundle_configs import check_shapes, inference_config, metadata
from ppl_med.runs.bundle_preprocessing import preprocessing_of
from ppl_med.runs.model_card import calibrated, model_card, performance
from ppl_med.runs.run_folder import (
    CONFIG,
    HISTORY,
    POSTERIOR,
    RECORD,
    WEIGHTS,
    Run,
    load,
    load_files,
)

_PLACES = {
    CONFIG: "configs/run.yaml",
    RECORD: "configs/run.json",
    WEIGHTS: "models/model.safetensors",
    HISTORY: "docs/history.nc",
}


def export(
    folder: str | Path,
    bundle: str | Path,
    *,
    tree: xr.DataTree | None = None,
    as_given: bool = False,
    allow: Iterable[str] = (),
) -> Path:
    """Write a saved run as a MONAI Bundle.

    Args:
        folder: Folder of the run.
        bundle: Folder to write; an earlier bundle there is replaced once the new one is complete.
        tree: The tree of ``predict`` for the figures of the card; ``posterior.nc`` in the run's
            folder by default, where it is.
        as_given: Export also a run whose images were prepared by code that a bundle cannot repeat,
            such as a reader that crops or resamples volumes; whoever gives the bundle images then
            has to prepare them in the same way, which card and metadata state.
        allow: Modules of the user's own that the run names.

    Returns:
        The bundle's folder.

    Raises:
        ValueError: If the run cannot be loaded, holds no shapes of its input, or its images came
            from their files in a way that a bundle cannot repeat.
        FileExistsError: If the folder holds something else than a bundle.
    """
    allow, bundle = tuple(allow), a_path("bundle", bundle)
    run = load(folder, allow=allow)
    if bundle.exists() and any(bundle.iterdir()) and not (bundle / _PLACES[RECORD]).exists():
        raise FileExistsError(f"{bundle} holds something else than a bundle; give another folder")
    check_shapes(run)
    preprocessing = preprocessing_of(run, as_given)
    if tree is None and (run.folder / POSTERIOR).exists():
        found = storage.load(run.folder / POSTERIOR)
        tree = found if isinstance(found, xr.DataTree) else None
    figures = performance(tree, run), calibrated(tree)
    texts = {
        "configs/metadata.json": _json(metadata(run, figures[0] | figures[1], preprocessing)),
        "configs/inference.json": _json(inference_config(run, allow, preprocessing)),
        "docs/README.md": model_card(run, tree, figures, preprocessing=preprocessing.statement),
    }
    with storage.replacing(bundle, "bundle") as partial:
        for name, text in texts.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for name, place in _PLACES.items():
            if (run.folder / name).exists():
                (partial / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.folder / name, partial / place)
    return bundle


def load_bundle(folder: str | Path, *, allow: Iterable[str] = ()) -> Run:
    """Load the run of a bundle; nothing that the bundle holds is executed.

    Args:
        folder: Folder of the bundle.
        allow: Modules of the user's own that it may name.

    Returns:
        The run, as ``load`` gives it.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or names what is not allowed.
    """
    folder = a_path("folder", folder)
    files = {name: folder / place for name, place in _PLACES.items()}
    return load_files(folder, files, allow)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
