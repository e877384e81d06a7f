"""What a bundle's inference.json runs: from image files to maps or a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from ppl_med import storage
from ppl_med.analysis import exports
from ppl_med.analysis.tree import has_probs, open_classes
from ppl_med.checks import a_path, whole
from ppl_med.data import DatasetBatches
from ppl_med.inference import predict
from ppl_med.runs.run_folder import Run


def find_images(folder: str | Path, pattern: str | Sequence[str] = "*") -> list[dict[str, str]]:
    """The image files of a folder in the order of their names, as MONAI's data sets take them.

    ``pattern`` is one or several, such as ``*/*.jpg``; their endings may be in capitals.

    Raises:
        FileNotFoundError: If there is none.
    """
    place = a_path("folder", folder)
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    found = {path for one in patterns for path in place.glob(_any_case(one)) if path.is_file()}
    files = sorted(found)
    if not files:
        raise FileNotFoundError(
            f"no file {', '.join(patterns)} in {place}; put the images there, or give "
            "--dataset_dir and --pattern"
        )
    return [{"image": str(path)} for path in files]


def _any_case(pattern: str) -> str:
    """A pattern whose ending may be in capitals: ``*.png`` as ``*.[pP][nN][gG]``."""
    stem, dot, ending = pattern.rpartition(".")
    if not dot or not ending.isalnum():
        return pattern
    return stem + dot + "".join(f"[{c}{c.swapcase()}]" if c.isalpha() else c for c in ending)


class BundlePredictor:
    """Predicts a data set with a run, and writes what it finds.

    Args:
        posterior: The run.
        dataset: A MONAI data set of dicts with "image", preprocessed as the run was trained.
        output_dir: Where the results go: ``predictions.csv``, a row a case; of masks the NIfTI
            files ``<case>_mask``, ``_probability``, ``_sd`` and ``_entropy``; of maps of numbers
            ``posterior.nc`` alone.
        draws: Posterior draws.
        seed: Seed of the draws.
        batch_size: Images at a time.
        device: Where to run; a GPU where there is one, by default.
        settings: Further arguments of ``ppl_med.inference.predict``, such as ``window``.
    """

    def __init__(
        self,
        posterior: Run,
        dataset: Any,
        output_dir: str | Path,
        draws: int = 32,
        seed: int = 0,
        batch_size: int = 1,
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> None:
        self.posterior, self.dataset = posterior, dataset
        self.folder = a_path("output_dir", output_dir)
        self.draws, self.seed, self.settings = draws, seed, settings
        self.batch_size, self.device = whole("batch_size", batch_size), device

    def run(self) -> xr.DataTree:
        """Predict and write; returns the tree."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tree = predict(
            self.posterior.model,
            self.posterior.guide,
            DatasetBatches(self.dataset, batch_size=self.batch_size),
            draws=self.draws,
            seed=self.seed,
            device=self.device,
            **self.settings,
        )
        if not has_probs(tree) and "row" in tree["posterior"].dims:
            storage.save(tree, self.folder / "posterior.nc")
            return tree
        exports.write_csv(tree, self.folder / "predictions.csv")
        if has_probs(tree) and "row" in open_classes(tree).array.dims:
            exports.write_nifti(_placed(tree), self.folder)
        return tree


def _placed(tree: xr.DataTree) -> xr.DataTree:
    """The tree with a place in space for its pixels: pictures have none, and get their indices."""
    found = tree["constant_data"].to_dataset() if "constant_data" in tree.children else xr.Dataset()
    if "affine" in found:
        return tree
    cases = tree["posterior"].sizes["case"]
    found["affine"] = (("case", "affine_dim_0", "affine_dim_1"), np.stack([np.eye(4)] * cases))
    groups = {name: part.to_dataset() for name, part in tree.children.items()}
    return xr.DataTree.from_dict({**groups, "constant_data": found})
