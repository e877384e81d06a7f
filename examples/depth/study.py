"""The scenes and the runs of one call."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from dense_uncertainty.variants import (
    Cell,
    assemble,
    cells,
    draws_of,
    draws_weights,
    guide_of,
    learns_noise,
    rows_of,
    share,
    train,
)
from torch import nn

from depth.options import Options
from depth.scores import COLUMNS, score
from ppl_med import storage
from ppl_med.data import Batches, depth_scenes, standardization
from ppl_med.inference import predict
from ppl_med.likelihoods import Gaussian, LaplaceNoise
from ppl_med.models import DenseRegressor
from ppl_med.networks import UNet, unet

SHIFTS: tuple[Literal["none", "colour", "texture"], ...] = ("none", "colour", "texture")
NAMES = {"none": "like training", "colour": "shifted colour", "texture": "shifted texture"}
LIKELIHOODS: dict[str, Any] = {"gaussian": Gaussian, "laplace": LaplaceNoise}
LAWS = {"gaussian": "normal", "laplace": "laplace"}
SCENE_SEEDS = {"val": 1_000_000, "test": 2_000_000}  # far from the seeds of training scenes
START_SCALE = 0.3  # metres, where one scale for all pixels starts: Adam moves it slowly


class _Centre(nn.Module):
    """Adds a depth to the first output, so that a net that knows nothing predicts it."""

    offset: torch.Tensor

    def __init__(self, middle: float) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(middle))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1] + self.offset, output[:, 1:]], 1)


class Study:
    """The scenes and the runs of one call."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.tests = {
            shift: depth_scenes(
                options.cases,
                size=options.size,
                noise=self.noise,
                shift=shift,
                seed=SCENE_SEEDS[options.split],
            )
            for shift in SHIFTS
        }

    @property
    def noise(self) -> Literal["gaussian", "laplace"]:
        """Distribution of the noise in the scenes."""
        return self.options.noise or self.options.likelihood

    def training(self, cell: Cell) -> tuple[Batches, dict[str, Any], float]:
        """Batches of a run, standardisation for every other one, and the mean depth."""
        options = self.options
        scenes = depth_scenes(
            options.scenes, size=options.size, noise=self.noise,
            outlier_fraction=options.outliers, seed=cell.seed,
        )  # fmt: skip
        loc, scale = standardization(scenes["image"])
        settings = {"loc": loc, "scale": scale}
        kept = {name: scenes[name] for name in ("image", "depth", "id")}
        batches = Batches(kept, batch_size=options.batch_size, shuffle=True, **settings)
        part = share(batches, cell.fraction, cell.seed)
        return part, settings, float(np.median(scenes["depth"]))

    def build(self, cell: Cell, middle: float) -> tuple[DenseRegressor, Any]:
        """Model and guide of a run; predictions start at the depth ``middle``, metres."""
        torch.manual_seed(cell.seed)
        noisy = learns_noise(cell.variant)
        likelihood = LIKELIHOODS[self.options.likelihood](
            ("row", "col"), heteroscedastic=noisy, site="depth", init_scale=START_SCALE,
            loc=0.0, scale=1.0,
        )  # fmt: skip
        channels = self.options.channels
        last = unet.convolution(2, channels[0], likelihood.num_outputs, 1)
        net = nn.Sequential(UNet(3, channels, 2), last, _Centre(middle))
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):  # as the scenes do; zeros differ
                layer.padding_mode = "replicate"
        model = DenseRegressor(net, likelihood)
        return model, guide_of(model, cell.variant, self.options, cell.seed)

    def trees(self, cell: Cell) -> dict[str, xr.DataTree]:
        """Train a run and predict all test scenes, or read what an earlier call left."""
        folder = self.folder / cell.name
        paths = {shift: folder / f"posterior-{shift}.nc" for shift in SHIFTS}
        if all(path.exists() for path in paths.values()):
            return {shift: storage.load(path) for shift, path in paths.items()}
        print(f"{cell.variant}, {cell.fraction:.0%} of the scenes, seed {cell.seed}")
        batches, settings, middle = self.training(cell)
        model, guide = self.build(cell, middle)
        train(model, guide, batches, self.options, cell, folder)
        found = {}
        for shift, scenes in self.tests.items():
            kept = {name: scenes[name] for name in ("image", "depth", "id")}
            test = Batches(kept, batch_size=64, **settings)
            found[shift] = predict(
                model, guide, test, draws=draws_of(cell.variant, self.options), seed=cell.seed,
                device=self.options.device,
            )  # fmt: skip
            if self.shown(cell):
                storage.save(found[shift], paths[shift])
        return found

    def shown(self, cell: Cell) -> bool:
        """Whether the report shows a run: all the data, first seed."""
        return (cell.fraction, cell.seed) == (max(self.options.fraction), self.options.seed[0])

    def figures(self, cell: Cell) -> xr.Dataset:
        """Every figure of a run (images), trained if need be."""
        path = self.folder / cell.name / "figures.nc"
        if path.exists():
            found = storage.load(path)
            assert isinstance(found, xr.Dataset)
            return found
        law = LAWS[self.options.likelihood]
        parts = [
            score(tree, self.tests[shift]["noise_sd"], law).expand_dims(images=[NAMES[shift]])
            for shift, tree in self.trees(cell).items()
        ]
        result = xr.concat(parts, "images")
        if not draws_weights(cell.variant):
            result["epistemic"] = xr.full_like(result["epistemic"], np.nan)
        storage.save(result, path)
        return result


def collect(study: Study) -> xr.Dataset:
    """Run everything that was asked for; the figures over variant, fraction, seed and images."""
    found = {}
    for cell in cells(study.options):
        found[cell] = study.figures(cell)
        result = assemble(found)
        storage.save(result, study.folder / "table.nc")
        text = storage.markdown_table(*rows_of(result, COLUMNS, "images"))
        storage.write_text(study.folder / "table.md", text + "\n")
    return result
