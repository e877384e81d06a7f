"""Parts of a Laplace approximation's precision, each over consecutive weights.

A block adds up curvature, takes the prior's precision, and then maps standard normal noise to that
of the weights: covariance = root root'. Everything is computed in double precision.

Kronecker factors of a layer with inputs a (bias: 1) and gradients g by its outputs:

    H  ~  A x G        A = mean over cases of sum_t a a',  G = sum over cases of mean_t sum_k g g'

t runs over pixels or tokens, k over the columns of the output's root. The prior's precision P_i
is that of an input, so A x G + P x I is diagonal in the eigenvectors of P^-1/2 A P^-1/2 and of G.

Reference: Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
curvature", ICML 2015; Grosse and Martens, ICML 2016 (convolutions); Ritter et al., "A scalable
Laplace approximation for neural networks", ICLR 2018.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ppl_med.inference.guides.output_curvature import NetworkAtMode, OutputCurvature
from ppl_med.weights import Entry, RandomWeights


class Block(nn.Module):
    """Consecutive weights from ``start`` to ``stop``."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def reset(self) -> None:
        """Begin to add up anew."""
        raise NotImplementedError

    def add(self, network: NetworkAtMode, batch: OutputCurvature) -> None:
        """Take the curvature of a batch, whose cases stand for the data set."""
        raise NotImplementedError

    def finish(self, num_batches: int, prior: Tensor) -> None:
        """Take the mean over an epoch's batches, and the prior's precision, dims (weight,)."""
        raise NotImplementedError

    def map(self, noise: Tensor) -> Tensor:
        """The root times a vector; dims (..., weight), as those of the result."""
        raise NotImplementedError

    def unmap(self, deviation: Tensor) -> Tensor:
        """Counterpart of ``map``."""
        raise NotImplementedError

    def log_determinant(self) -> Tensor:
        """Of the root, in nats."""
        raise NotImplementedError


class Diagonal(Block):
    """Independent weights."""

    scale: Tensor

    def __init__(self, start: int, stop: int, like: Tensor) -> None:
        super().__init__(start, stop)
        self.register_buffer("scale", like.new_zeros(stop - start))

    def reset(self) -> None:
        """See ``Block``."""
        self._sum = torch.zeros_like(self.scale, dtype=torch.float64)

    def add(self, network: NetworkAtMode, batch: OutputCurvature) -> None:
        """See ``Block``."""
        for rows in network.rows(batch, self.start, self.stop):
            self._sum += rows.double().square().sum(0)

    def finish(self, num_batches: int, prior: Tensor) -> None:
        """See ``Block``."""
        self.scale.copy_((self._sum / num_batches + prior).rsqrt())
        del self._sum

    def map(self, noise: Tensor) -> Tensor:
        """See ``Block``."""
        return noise * self.scale

    def unmap(self, deviation: Tensor) -> Tensor:
        """See ``Block``."""
        return deviation / self.scale

    def log_determinant(self) -> Tensor:
        """See ``Block``."""
        return self.scale.double().log().sum()


class Dense(Block):
    """Weights with all their correlations."""

    scale_tril: Tensor

    def __init__(self, start: int, stop: int, like: Tensor) -> None:
        super().__init__(start, stop)
        self.register_buffer("scale_tril", like.new_zeros((stop - start, stop - start)))

    def reset(self) -> None:
        """See ``Block``."""
        self._sum = torch.zeros_like(self.scale_tril, dtype=torch.float64)

    def add(self, network: NetworkAtMode, batch: OutputCurvature) -> None:
        """See ``Block``."""
        for rows in network.rows(batch, self.start, self.stop):
            self._sum.addmm_(rows.double().mT, rows.double())

    def finish(self, num_batches: int, prior: Tensor) -> None:
        """See ``Block``."""
        precision = self._sum / num_batches + prior.diag()
        normal = torch.distributions.MultivariateNormal(
            torch.zeros_like(prior), precision_matrix=precision, validate_args=False
        )
        self.scale_tril.copy_(normal.scale_tril)
        del self._sum

    def map(self, noise: Tensor) -> Tensor:
        """See ``Block``."""
        return noise @ self.scale_tril.mT

    def unmap(self, deviation: Tensor) -> Tensor:
        """See ``Block``."""
        solved = torch.linalg.solve_triangular(self.scale_tril, deviation[..., None], upper=False)
        return solved[..., 0]

    def log_determinant(self) -> Tensor:
        """See ``Block``."""
        return self.scale_tril.diagonal().double().log().sum()


class Kronecker(Block):
    """Weight and bias of a linear or convolutional layer, or one of the two.

    Args:
        start: Its first weight.
        entries: One or two parameters of the layer.
        weights: The random weights.

    Raises:
        ValueError: If the layer is neither, or is a grouped or transposed convolution.
    """

    inner: Tensor
    outer: Tensor
    scales: Tensor

    def __init__(self, start: int, entries: list[Entry], weights: RandomWeights) -> None:
        super().__init__(start, start + sum(entry.num_weights for entry in entries))
        self.path, name = entries[0].name.rpartition(".")[0], entries[0].name
        layer: Any = weights.net.get_submodule(self.path)
        plain = isinstance(layer, nn.Linear) or (
            isinstance(layer, _ConvNd)
            and not isinstance(layer, _ConvTransposeNd)
            and (layer.groups, layer.padding_mode) == (1, "zeros")
        )
        if not plain or any(entry.name in map(str, weights._ties) for entry in entries):
            raise ValueError(
                f"structure='kron' knows linear layers and convolutions without groups that stand "
                f"once in the net, and {name!r} ({type(layer).__name__}) is none; pass "
                "structure='diag', or leave it out of the random weights by where=..."
            )
        self.has_weight, self.has_bias = entries[0].is_layer_weight, not entries[-1].is_layer_weight
        outputs = entries[0].shape[0]
        inputs = (self.stop - self.start) // outputs
        like = weights.initial()
        self.register_buffer("inner", like.new_zeros((inputs, inputs)))
        self.register_buffer("outer", like.new_zeros((outputs, outputs)))
        self.register_buffer("scales", like.new_zeros((outputs, inputs)))

    def reset(self) -> None:
        """See ``Block``."""
        self._inputs = torch.zeros_like(self.inner, dtype=torch.float64)
        self._outputs = torch.zeros_like(self.outer, dtype=torch.float64)
        self._share = 0.0

    def take(self, inputs: Tensor, gradients: list[Tensor], share: Tensor, layer: Any) -> None:
        """Add a batch.

        Args:
            inputs: Of the layer, dims (case, ...).
            gradients: By its output, one for each column of the output's root.
            share: What a case counts, dims (case,).
            layer: The layer.
        """
        a = _patches(inputs, layer) if self.has_weight else None
        g = torch.stack([_tokens(one, layer) for one in gradients]).double()
        tokens = g.shape[2]
        if a is None:
            a = g.new_zeros((*g.shape[1:3], 0))
        if self.has_bias:
            a = torch.cat([a.double(), a.new_ones((*a.shape[:2], 1)).double()], -1)
        a = a.double()
        self._inputs += torch.einsum("n,nti,ntj->ij", share, a, a)
        self._outputs += torch.einsum("knti,kntj->ij", g, g) / tokens
        self._share += float(share.sum())

    def finish(self, num_batches: int, prior: Tensor) -> None:
        """See ``Block``."""
        by_output = self._by_layer(prior)
        by_input = by_output[0]
        if not bool((by_output == by_input).all()):
            raise ValueError(
                "structure='kron' needs a prior of one scale for the weights and one for the "
                "biases of a layer; pass structure='diag'"
            )
        half = by_input.rsqrt()
        inner = half[:, None] * (self._inputs / self._share) * half
        inner_values, inner_vectors = torch.linalg.eigh(inner)
        outer_values, outer_vectors = torch.linalg.eigh(self._outputs / num_batches)
        products = torch.outer(outer_values.clamp_min(0), inner_values.clamp_min(0))
        self.scales.copy_((products + 1).rsqrt())
        self.inner.copy_(half[:, None] * inner_vectors)
        self.outer.copy_(outer_vectors)
        del self._inputs, self._outputs

    def map(self, noise: Tensor) -> Tensor:
        """See ``Block``."""
        square = noise.reshape(*noise.shape[:-1], *self.scales.shape) * self.scales
        return self._flat(self.outer @ square @ self.inner.mT)

    def unmap(self, deviation: Tensor) -> Tensor:
        """See ``Block``."""
        turned = torch.linalg.solve(self.inner, self._by_layer(deviation).mT).mT
        return ((self.outer.mT @ turned) / self.scales).flatten(-2)

    def log_determinant(self) -> Tensor:
        """See ``Block``."""
        inner = torch.linalg.slogdet(self.inner.double())[1]
        return self.scales.double().log().sum() + len(self.outer) * inner

    def _by_layer(self, flat: Tensor) -> Tensor:
        """From (..., weight) to (..., output, input), the bias as the last input."""
        outputs, inputs = self.scales.shape
        own = inputs - (1 if self.has_bias else 0)
        weight, bias = flat.split([outputs * own, flat.shape[-1] - outputs * own], -1)
        parts = [weight.reshape(*flat.shape[:-1], outputs, own)]
        return torch.cat([*parts, bias[..., None]] if self.has_bias else parts, -1)

    def _flat(self, square: Tensor) -> Tensor:
        own = square.shape[-1] - (1 if self.has_bias else 0)
        return torch.cat([square[..., :own].flatten(-2), square[..., own:].flatten(-2)], -1)


def _tokens(values: Tensor, layer: Any) -> Tensor:
    """From a layer's output to dims (case, token or pixel, unit)."""
    if isinstance(layer, nn.Linear):
        return values.reshape(len(values), -1, values.shape[-1])
    return values.flatten(2).mT


def _patches(inputs: Tensor, layer: Any) -> Tensor:
    """What each token or pixel of the output reads, dims (case, token or pixel, input)."""
    if isinstance(layer, nn.Linear):
        return _tokens(inputs, layer)
    before, axes = layer._reversed_padding_repeated_twice, len(layer.kernel_size)
    found = pad(inputs, before)
    for axis in range(axes):
        kernel, dilation = layer.kernel_size[axis], layer.dilation[axis]
        reach = dilation * (kernel - 1) + 1
        found = found.unfold(axis + 2, reach, layer.stride[axis])[..., ::dilation]
    pixels = found.movedim(1, 1 + axes).flatten(1, axes)
    return pixels.flatten(2)


def add_kronecker(blocks: list[Kronecker], network: NetworkAtMode, batch: OutputCurvature) -> None:
    """Add a batch to all layers, by one pass back for each column of the output's root.

    Raises:
        ValueError: If the net uses a layer more than once, or never.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []

    def note(path: str) -> Any:
        def take(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if path in seen:
                raise ValueError(
                    f"structure='kron' needs layers that the net uses once, and {path!r} is used "
                    "again; pass structure='diag'"
                )
            seen[path] = (inputs[0].detach(), output)
            return output.clone()  # which an activation in place may change

        return take

    net = network.weights.net
    layers = {block.path: net.get_submodule(block.path) for block in blocks}
    try:
        handles = [layer.register_forward_hook(note(path)) for path, layer in layers.items()]
        with torch.enable_grad():
            output = network.output(network.mode.clone().requires_grad_(), batch.inputs)
            outputs = [seen[block.path][1] for block in blocks]
            columns = batch.roots.unbind(-1)
            found = [torch.autograd.grad(output, outputs, c, retain_graph=True) for c in columns]
    finally:
        for handle in handles:
            handle.remove()
    for block, gradients in zip(blocks, zip(*found, strict=True), strict=True):
        block.take(seen[block.path][0], list(gradients), batch.share, layers[block.path])
