"""The images and the runs of one call."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from dense_uncertainty.corruption import corrupt
from dense_uncertainty.pixels import (
    pixel_maps,
    score,
)
from dense_uncertainty.variants import (
    Cell,
    draws_of,
    draws_weights,
    guide_of,
    learns_noise,
    share,
    train,
)
from monai.networks.nets.unet import UNet as MonaiUNet
from torch import nn

from ppl_med import storage
from ppl_med.data import Batches, load_camvid, load_wbc_seg, mirror_with_mask, standardization
from ppl_med.data.readers.camvid import CLASS_NAMES
from ppl_med.inference import functions, predict
from ppl_med.likelihoods import LogitNormal
from ppl_med.models import BayesianSegmenter
from ppl_med.networks import FCDenseNet, UNet, unet
from street_scenes.options import Options

BLOCK = 8  # images predicted at a time
SHOWN = 4  # images in the pictures
CELLS = "blood cells"


class Study:
    """The images and the runs of one call."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        splits = load_camvid(options.data, size=options.size)
        if options.split not in splits:
            raise FileNotFoundError(f"--split {options.split}: the folder has {sorted(splits)}")
        self.train = {name: splits["train"][name] for name in ("image", "mask", "id")}
        if options.smoke:
            self.train = {name: values[:12] for name, values in self.train.items()}
        loc, scale = standardization(self.train["image"])
        self.settings: dict[str, Any] = {"loc": loc, "scale": scale}
        whole = splits[options.split]
        number = min(options.cases or len(whole["id"]), len(whole["id"]))
        kept = np.linspace(0, len(whole["id"]) - 1, number).round().astype(int)
        test = {name: whole[name][kept] for name in ("image", "mask", "id")}
        self.tests = {options.split: test}
        for kind in options.corruption:
            images = corrupt(test["image"], kind, options.severity)
            self.tests[f"{kind} {options.severity}"] = test | {"image": images}
        if options.cells:
            self.tests[CELLS] = self._cells(number)

    def _cells(self, number: int) -> dict[str, Any]:
        """Pictures of another world; their classes are none of these."""
        part = load_wbc_seg(self.options.data, size=self.options.size, resize="scale")["val"]
        cut = {name: part[name][:number] for name in ("image", "mask", "id")}
        return cut | {"mask": np.full_like(cut["mask"], -1)}

    @property
    def shown(self) -> list[Any]:
        """Ids of the images in the pictures: evenly spaced, not chosen."""
        ids = self.tests[self.options.split]["id"].tolist()
        return [ids[k] for k in np.linspace(0, len(ids) - 1, SHOWN).astype(int)]

    def build(self, cell: Cell) -> tuple[BayesianSegmenter, Any]:
        """Model and guide of a run."""
        torch.manual_seed(cell.seed)
        noisy = learns_noise(cell.variant)
        outputs = len(CLASS_NAMES) * (1 + noisy)
        options = self.options
        net: nn.Module
        if options.net in ("residual", "plain"):
            first = options.channels[0]
            body = UNet(3, options.channels, 2) if options.net == "plain" else residual(options)
            net = nn.Sequential(body, unet.convolution(2, first, outputs, 1))
        else:
            net = FCDenseNet.of_depth(int(options.net.removeprefix("tiramisu")), 3, outputs)
        law: Any = "categorical"
        if noisy:
            settings: Any = {"event": ("row", "col"), "site": "mask", "partial": True}
            law = LogitNormal(CLASS_NAMES, options.noise_samples, **settings)
        model = BayesianSegmenter(net, CLASS_NAMES, likelihood=law)
        return model, guide_of(model, cell.variant, options, cell.seed)

    def run(self, cell: Cell) -> xr.Dataset:
        """Train a run and give its figures (images), or read what an earlier call left."""
        folder = self.folder / cell.name
        if (folder / "figures.nc").exists():
            return read(folder / "figures.nc")
        print(f"{cell.variant}, {cell.fraction:.0%} of the images, seed {cell.seed}")
        model, guide = self.build(cell)
        batches = Batches(
            self.train, batch_size=self.options.batch_size, shuffle=True,
            transform=mirror_with_mask, **self.settings,
        )  # fmt: skip
        part = share(batches, cell.fraction, cell.seed)
        train(model, guide, part, self.options, cell, folder)
        parts, confusions = [], []
        for name, arrays in self.tests.items():
            maps = self.predict_maps(model, guide, cell, arrays)
            storage.save(maps, folder / f"maps-{name.replace(' ', '-')}.nc")
            confusion = maps["confusion"]
            confusions.append(confusion.expand_dims(images=[name]))
            parts.append(score(maps, confusion).expand_dims(images=[name]))
        confusion = xr.concat(confusions, "images", join="outer").to_dataset(name="confusion")
        storage.save(confusion, folder / "confusion.nc")
        storage.save(self.predict_shown(model, guide, cell), folder / "posterior-shown.nc")
        result = xr.concat(parts, "images")
        if not draws_weights(cell.variant):
            result["logit_variance"] = xr.full_like(result["logit_variance"], np.nan)
        storage.save(result, folder / "figures.nc")
        return result

    def predict_maps(
        self, model: Any, guide: Any, cell: Cell, arrays: dict[str, Any]
    ) -> xr.Dataset:
        """What the tables and figures need of every pixel, in bounded memory.

        Returns:
            ``predictive_entropy``, ``expected_entropy``, ``mutual_information`` nats;
            ``logit_variance``, over draws, mean over classes; ``confidence``; ``nll`` nats, NaN
            where nobody labelled; ``truth`` and ``prediction``, class ids; dims (case, row, col).
        """
        number = len(arrays["id"])
        draws = draws_of(cell.variant, self.options) if draws_weights(cell.variant) else 1
        batches = Batches(arrays, batch_size=BLOCK, **self.settings)
        settings = {"draws": draws, "seed": cell.seed}
        parts = []
        for start in range(0, number, BLOCK):
            block = batches.subset(np.arange(start, min(start + BLOCK, number)))
            tree = predict(
                model, guide, block, device=self.options.device, progress=False, **settings
            )
            image = next(iter(block))["image"].to(next(guide.parameters()).device)
            with torch.no_grad():
                outputs = [one(image)[:, : len(CLASS_NAMES)] for one in
                           functions(model, guide, **settings)]  # fmt: skip
            variance = torch.stack(outputs).double().var(0, correction=0).mean(1)
            parts.append(pixel_maps(tree, variance.cpu().numpy()))
        return xr.concat(parts, "case")

    def predict_shown(self, model: Any, guide: Any, cell: Cell) -> xr.DataTree:
        """Posterior of the images in the pictures."""
        arrays = self.tests[self.options.split]
        place = {one: index for index, one in enumerate(arrays["id"].tolist())}
        kept = sorted({place[one] for one in self.shown})
        batches = Batches(arrays, batch_size=BLOCK, **self.settings).subset(kept)
        return predict(
            model, guide, batches, draws=draws_of(cell.variant, self.options), seed=cell.seed,
            device=self.options.device,
        )  # fmt: skip

    def path(self, variant: Any, name: str) -> Path:
        """A file of the run with all the data and the first seed."""
        options = self.options
        return self.folder / Cell(variant, max(options.fraction), options.seed[0]).name / name


def residual(options: Options) -> nn.Module:
    """MONAI's U-Net of residual units, with as many outputs as it has channels at the top."""
    channels = options.channels
    strides = (2,) * (len(channels) - 1)
    return MonaiUNet(2, 3, channels[0], channels, strides, num_res_units=2)


def read(path: Path) -> xr.Dataset:
    """A Dataset that an earlier call left."""
    found = storage.load(path)
    assert isinstance(found, xr.Dataset)
    return found
