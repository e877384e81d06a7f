"""Run networks by overlapping patches: for volumes whose features do not fit into memory.

``predict(..., window=(64, 64, 32))`` runs a program inside ``sliding``. Every ``RandomWeights``
then draws its weights once, as always, and runs its net on one patch after the other by MONAI's
sliding-window inferer; the outputs are blended to the map of the whole image, on which the program
goes on. So a draw is still one function of the image:

    output  =  sum over patches p of  w_p * net(patch p; weights)  /  sum of w_p
    mask | output, depth | output  as the program says, on the whole image

What is blended is the net's output: logits of classes (a geometric mean of the patches'
probabilities, normalised), location and log-variance of numbers. Nets that normalise over space
(InstanceNorm, GroupNorm, attention, pooling to one vector) see the patch only, and are other
functions than on the whole image, with the same weights.

Reference of the blending: Isensee et al., "nnU-Net", Nature Methods 18, 2021.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from ppl_med.checks import choice, is_whole, reject, share
from ppl_med.weights.mirroring import mirroring

Blend = Literal["gaussian", "constant"]


@dataclass
class SlidingWindow:
    """How images are cut, and whether any was, ``used``.

    Args:
        window: Size of a patch along every spatial axis, pixels. Where the image is smaller, it is
            padded with zeros about its middle, and the output is cut back.
        overlap: Share of a patch that it has in common with the next one, in [0, 1).
        blend: "gaussian" (less weight towards the border of a patch) or "constant".

    Raises:
        ValueError: If an argument makes no sense; on a run, if the image has other axes than the
            window, or the net's output is no map of its input's size.
    """

    window: Sequence[int]
    overlap: float = 0.25
    blend: Blend = "gaussian"
    used: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        sizes = self.window if isinstance(self.window, Sequence) else ()
        if not sizes or not all(is_whole(size) and size > 0 for size in sizes):
            rule = (
                "a whole number of pixels, 1 or more, for every spatial axis, such as (64, 64, 32)"
            )
            reject("window", rule, self.window)
        share("overlap", self.overlap)
        choice("blend", self.blend, get_args(Blend))
        self.window = tuple(int(size) for size in self.window)

    def __str__(self) -> str:
        """For attributes of results."""
        return f"{self.window}, overlap {self.overlap:g}, blend {self.blend}"

    def run(self, net: Callable[[Tensor], Any], image: Tensor) -> Tensor:
        """The net's output on images (case, channel, *space), as many cases at a time."""
        from monai.inferers.utils import sliding_window_inference

        if image.dim() - 2 != len(self.window):
            raise ValueError(
                f"window {self.window} has {len(self.window)} axes, but the network is given "
                f"{tuple(image.shape)}, with {image.dim() - 2} spatial axes after case and channel"
            )

        def checked(patch: Tensor) -> Tensor:
            output = net(patch)
            if not isinstance(output, Tensor) or output.shape[2:] != patch.shape[2:]:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(
                    f"window: the network gave {shape} for a patch {tuple(patch.shape)}; only "
                    "networks whose output is one map of the input's size run by patches"
                )
            return output

        self.used = True
        output = sliding_window_inference(
            image, self.window, len(image), checked, self.overlap, mode=self.blend
        )
        assert isinstance(output, Tensor)
        return output


_window: ContextVar[SlidingWindow | None] = ContextVar("window", default=None)


@contextlib.contextmanager
def sliding(window: SlidingWindow | None) -> Iterator[None]:
    """Run random networks by patches until the block is left; as they are for None."""
    token = _window.set(window)
    try:
        yield
    finally:
        _window.reset(token)


def run_net(net: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """``net(*inputs, **options)``; of one image by patches, or mirrored, in such a block."""
    window, mirror = _window.get(), mirroring.get()
    if window is None and mirror is None:
        return net(*inputs, **options)
    if options or len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        name, how = ("mirror", "mirrored") if window is None else ("window", "by patches")
        raise ValueError(
            f"{name}: only networks of one image run {how}, and this one takes "
            f"{len(inputs)} inputs and the keywords {sorted(options)}; join maps along the channel "
            f"axis, or leave {name} out"
        )

    def whole(image: Tensor) -> Any:
        return net(image) if window is None else window.run(net, image)

    return whole(inputs[0]) if mirror is None else mirror.run(whole, inputs[0])
