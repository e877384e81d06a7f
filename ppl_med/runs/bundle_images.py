"""The images that a bundle is given, read as the run's were."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ppl_med.checks import a_path, choice
from ppl_med.data.readers.headers import read_pixels
from ppl_med.data.readers.image_files import check_size
from ppl_med.data.readers.resampling import RESIZES, Resize, to_size


class ReadImage:
    """Reads "image", a path, in place of MONAI's ``LoadImaged``: {"image": path} -> {"image": ...}.

    Pictures are read and brought to size as ``ppl_med.data.from_table`` does it, so that a network
    sees the very pixels that it would have been trained on. Of ``*.npy`` files the array is taken.

    Args:
        shape: Channel, [depth,] row and col of what the network takes.
        unit: "uint8" for whole grey levels of 0 to 255, "float" for any numbers.
        resize: Pictures of another size: "fit", "scale" or "pad" as in ``from_table``; None refuses
            them.
    """

    def __init__(
        self,
        shape: Sequence[int],
        unit: Literal["uint8", "float"] = "uint8",
        resize: Resize | None = None,
    ) -> None:
        check_size(shape, ("channels", *("depth", "rows", "cols")[4 - len(shape) :]))
        self.shape = tuple(int(one) for one in shape)
        self.unit = choice("unit", unit, ("uint8", "float"))
        if resize is not None:
            choice("resize", resize, RESIZES)
        self.resize = resize

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Read one.

        Raises:
            ValueError: If the file is damaged, or its pixels are of another shape or kind than the
                network was trained on.
        """
        from monai.data import MetaTensor

        path = a_path("image", item["image"])
        pixels = self._pixels(path)
        if self.resize is not None:
            pixels, _ = to_size(pixels, self.shape[1:], self.resize)
        if pixels.shape != self.shape:
            raise ValueError(
                f"{path} has the shape {pixels.shape}, but the network was trained on {self.shape} "
                "(channel, ..., row, col); prepare it as the training images were"
            )
        if (pixels.dtype == np.uint8) != (self.unit == "uint8"):
            raise ValueError(
                f"{path} holds {pixels.dtype}, but the network was trained on {self.unit}; prepare "
                "it as the training images were"
            )
        values = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
        return {**item, "image": MetaTensor(values, meta={"filename_or_obj": str(path)})}

    def _pixels(self, path: Path) -> np.ndarray:
        if path.suffix != ".npy":
            return read_pixels(path, colour=self.shape[0] == 3)[0]
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no array of numbers, or damaged ({error})") from error
