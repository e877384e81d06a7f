"""What ``predict`` keeps of a network beside the program's sites: logits and features of layers."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from ppl_med.checks import reject
from ppl_med.inference.prediction.tree_builder import Chunk, TreeBuilder
from ppl_med.programs.sites import Program
from ppl_med.weights import find_random_weights

LOGIT, FEATURE = "logit", "feature:"
_NEAR = 3


def check_keep(keep: object) -> tuple[str, ...]:
    """The names in ``keep``; an error where it is no sequence of them."""
    if isinstance(keep, str):
        raise TypeError(f"keep must be a sequence of names; pass keep=({keep!r},)")
    if not isinstance(keep, list | tuple):
        reject("keep", 'names such as ("logit", "feature:layer4")', keep)
    return tuple(keep)


class KeptOutputs:
    """Outputs of the network with random weights, and of its layers, caught while it runs.

    Args:
        models: The model of every chain.
        keep: "logit", the network's output, and "feature:<layer>", the output of the layer of that
            name, as in ``network.named_modules()``, averaged over space (or over tokens).

    Raises:
        ValueError: A name that is neither, no such layer (with the nearest names), or a model
            without exactly one ``RandomWeights``.
    """

    def __init__(self, models: Iterable[Program], keep: Sequence[str]) -> None:
        self.names = check_keep(keep)
        self._caught: dict[str, list[Tensor]] = {name: [] for name in self.names}
        self._layers: list[tuple[nn.Module, str]] = []
        for model in models if self.names else ():
            networks = list(find_random_weights([model]).values())
            if len(networks) != 1:
                raise ValueError(
                    f"keep needs a model with one network of random weights (RandomWeights), this "
                    f"one has {len(networks)}"
                )
            found = [(_layer(networks[0], name), name) for name in self.names]
            self._layers += [pair for pair in found if pair not in self._layers]

    def caught(self) -> "_Catching":
        """Context in which outputs are caught; ``record`` stores them after every run."""
        return _Catching(self)

    def record(
        self, builder: TreeBuilder, chunk: Chunk, where: tuple[int, int, int], cases: int
    ) -> None:
        """Store what was caught in one run on a batch of so many cases.

        Raises:
            ValueError: A layer ran not once, its output is not one row for every case, or the
                network gives no logit of every class.
        """
        for name, values in self._caught.items():
            if len(values) != 1:
                raise ValueError(
                    f"keep={name!r}: it ran {len(values)} times in one run of the model, so there "
                    "is not one output of a draw; choose a layer that runs once"
                )
            value = values.pop()
            if value.dim() != 2 or len(value) != cases:
                raise ValueError(
                    f"keep={name!r}: its output has shape {tuple(value.shape)}, not one row for "
                    f"each of {cases} cases; choose another layer"
                )
            classes = builder.coords.get("class")
            if name == LOGIT and classes is not None and len(classes) != value.shape[1]:
                raise ValueError(
                    f"keep={name!r}: the network gives {value.shape[1]} numbers of a case, no "
                    f"logit for each of {len(classes)} classes; keep a layer, 'feature:<layer>'"
                )
            dims = ["case", "class" if name == LOGIT else f"{name}_dim_0"]
            builder.put(chunk, (builder.group, name), dims, value, where, builder.attrs)


class _Catching(ExitStack):
    """Hooks on the layers, taken off at the end."""

    def __init__(self, kept: KeptOutputs) -> None:
        super().__init__()
        for layer, name in kept._layers:

            def catch(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                kept._caught[name].append(_pooled(output, name).detach())

            self.callback(layer.register_forward_hook(catch).remove)


def _layer(network: Any, name: str) -> nn.Module:
    """The module whose output has that name."""
    if name == LOGIT:
        return network
    if not isinstance(name, str) or not name.startswith(FEATURE):
        raise ValueError(f"keep must hold 'logit' or 'feature:<layer>', got {name!r}")
    layers = dict(network.net.named_modules())
    wanted = name.removeprefix(FEATURE)
    if wanted not in layers or not wanted:
        names = [layer for layer in layers if layer]
        near = get_close_matches(wanted, names, n=_NEAR, cutoff=0.3) or names[-_NEAR:]
        raise ValueError(
            f"keep={name!r}: the network has no layer {wanted!r}; the nearest are "
            f"{', '.join(near)} (see network.named_modules())"
        )
    return layers[wanted]


def _pooled(output: Any, name: str) -> Tensor:
    """Mean over space (case, channel, ...), or over tokens (case, token, unit)."""
    if not isinstance(output, Tensor):
        raise ValueError(f"keep={name!r}: its output is a {type(output).__name__}, no tensor")
    if name == LOGIT or output.dim() < 3:
        return output
    return output.mean(1) if output.dim() == 3 else output.flatten(2).mean(2)
