"""One output of a network that returns several."""

from typing import Any

from torch import Tensor, nn

from ppl_med.checks import is_whole, reject


class SelectOutput(nn.Module):
    """A network's output under a key, or at a position; further keys go into nested outputs.

    Many networks return a dict (torchvision's DeepLab: ``SelectOutput(net, "out")``), a tuple
    (MONAI's ViT: ``SelectOutput(net, 0)``) or a list (MONAI's BasicUNet++, one map a depth).

    Args:
        net: The network.
        keys: Key of a dict, or position in a tuple or list, one for every level of nesting.

    Raises:
        ValueError: If there is no key, or one is no name and no position; on a run, if the output
            holds nothing there.
    """

    def __init__(self, net: nn.Module, *keys: str | int) -> None:
        super().__init__()
        if not keys or not all(isinstance(key, str) or is_whole(key) for key in keys):
            reject("keys", "names of a dict's entries or positions in a tuple", keys)
        self.net, self.keys = net, keys

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """The chosen output."""
        output = self.net(*inputs, **options)
        for key in self.keys:
            try:
                output = output[key]
            except (LookupError, TypeError) as error:
                known = f"the keys {[*output]}" if isinstance(output, dict) else "other outputs"
                raise ValueError(
                    f"net gave a {type(output).__name__}, which has no {key!r} but {known}"
                ) from error
        return output
