"""KL divergence between two vectors of independent normals, with few passes over memory.

    KL(q || p) = sum_i [ (s_i^2 + (m_i - l_i)^2) / (2 t_i^2) - log(s_i / t_i) - 1/2 ]        nats

for q = Normal(m, s^2) and p = Normal(l, t^2). Written as a chain of torch operations, every one of
them and every gradient would stream a vector of millions of weights through memory; on the CPU that
is most of a mean-field step. Here the vector is walked through in blocks that stay in the cache.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK = 2**18  # numbers; 1 MiB of float32


class _NormalKL(torch.autograd.Function):
    """Differentiable, twice too, in the location and scale of q."""

    @staticmethod
    def forward(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
        vectors = (loc, scale, prior_loc, prior_scale)
        terms = []
        for m, s, prior_m, prior_s in zip(*_blocks(*vectors), strict=True):
            ratio = s / prior_s
            logarithm = ratio.log()
            shift = (m - prior_m).div_(prior_s)
            terms.append((ratio.square_().addcmul_(shift, shift).mul_(0.5).sub_(logarithm)).sum())
        return torch.stack(terms).sum() - 0.5 * len(loc)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        if torch.is_grad_enabled():
            return (*_gradients(gradient, *ctx.saved_tensors), None, None)
        loc, scale = ctx.saved_tensors[:2]
        by_loc, by_scale = torch.empty_like(loc), torch.empty_like(scale)
        blocks = _blocks(loc, scale, *ctx.saved_tensors[2:], by_loc, by_scale)
        for m, s, prior_m, prior_s, to_loc, to_scale in zip(*blocks, strict=True):
            precision = gradient / prior_s.square()
            torch.sub(m, prior_m, out=to_loc).mul_(precision)
            torch.mul(s, precision, out=to_scale).sub_(gradient / s)
        return by_loc, by_scale, None, None


def _gradients(
    gradient: Tensor, loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor
) -> tuple[Tensor, Tensor]:
    precision = gradient / prior_scale.square()
    return (loc - prior_loc) * precision, scale * precision - gradient / scale


def _blocks(*vectors: Tensor) -> list[tuple[Tensor, ...]]:
    """Pieces of each vector; a number is repeated. One piece where there is no cache to stay in."""
    size = max(len(vector) for vector in vectors if vector.dim())
    block = BLOCK if vectors[0].device.type == "cpu" else size
    count = -(-size // block)
    return [v.split(block) if v.dim() else (v,) * count for v in vectors]


def normal_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """KL(Normal(loc, scale) || Normal(prior_loc, prior_scale)) summed over weights, in nats.

    Args:
        loc: Location of q, dims (weight,).
        scale: Standard deviation of q, dims (weight,).
        prior_loc: Location of p, dims (weight,) or ().
        prior_scale: Standard deviation of p, dims (weight,) or ().
    """
    if torch.is_grad_enabled() and (prior_loc.requires_grad or prior_scale.requires_grad):
        ratio, shift = scale / prior_scale, (loc - prior_loc) / prior_scale
        return (0.5 * (ratio.square() + shift.square()) - ratio.log()).sum() - 0.5 * len(ratio)
    return _NormalKL.apply(loc, scale, prior_loc, prior_scale)
