"""Every draw of the weights sees the images mirrored in its own way.

Averaging a prediction over mirrored images is common in segmentation: 2 passes for every axis. With
weights that are drawn, each of these passes can carry a draw of its own, so that a posterior costs
what mirroring alone does:

    f_s(image)  =  mirror_s( net( mirror_s(image); weights_s ) )

where mirror_s turns over the axes that the binary digits of the draw's number s name: all ways have
come up after 2^axes draws. A draw is still one function, of all cases alike. The mean over draws is
that over weights and ways at once; its spread holds what the net says otherwise of a mirrored
image, which `predict_augmented` tells apart. It is right only for a net that was trained on
mirrored images too.

Reference of the mirroring: Isensee et al., "nnU-Net", Nature Methods 18, 2021.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_med.axes import SPACE
from ppl_med.checks import reject


@dataclass
class Mirroring:
    """Along which axes images are mirrored, for which draw, and whether any was, ``used``.

    Args:
        along: True for all spatial axes, or names such as ("col",).

    Raises:
        ValueError: If names are no spatial axes; on a run, if the image lacks them, or the network
            gives something else than one array.
    """

    along: bool | Sequence[str] = True
    draw: int = 0
    used: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        if self.along is True:
            return
        names: tuple[str, ...] = ()
        if not isinstance(self.along, str) and isinstance(self.along, Sequence):
            names = tuple(self.along)
        if not names or len(set(names)) < len(names) or not set(names) <= set(SPACE[3]):
            reject(
                "mirror", f"True, or different names of {SPACE[3]}, such as ('col',)", self.along
            )
        self.along = names

    def __str__(self) -> str:
        """For attributes of results."""
        return "all axes" if isinstance(self.along, bool) else ", ".join(self.along)

    def axes(self, image: Tensor) -> list[int]:
        """Those that are turned over for this draw, of an image (case, channel, *space)."""
        space = SPACE.get(image.dim() - 2, ())
        names = space if isinstance(self.along, bool) else self.along
        if not names or not set(names) <= set(space):
            raise ValueError(
                f"mirror: the network is given {tuple(image.shape)}, in which there is no spatial "
                f"axis {', '.join(names) or 'at all'}; name others, or leave mirror out"
            )
        return [2 + space.index(name) for bit, name in enumerate(names) if self.draw >> bit & 1]

    def run(self, net: Callable[[Tensor], Any], image: Tensor) -> Tensor:
        """The net's output on mirrored images, maps turned back."""
        axes = self.axes(image)
        output = net(image.flip(axes) if axes else image)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"mirror: the network gave a {type(output).__name__}; only of one array is it "
                "known what to turn back, so leave mirror out"
            )
        self.used = True
        return output.flip(axes) if axes and output.dim() == image.dim() else output


mirroring: ContextVar[Mirroring | None] = ContextVar("mirroring", default=None)


@contextlib.contextmanager
def mirrored(how: Mirroring | None) -> Iterator[None]:
    """Run random networks on mirrored images until the block is left; as they are for None."""
    token = mirroring.set(how)
    try:
        yield
    finally:
        mirroring.reset(token)


def mirror_as(draw: int) -> None:
    """Mirror as this draw does from now on, where images are mirrored."""
    how = mirroring.get()
    if how is not None:
        how.draw = draw
