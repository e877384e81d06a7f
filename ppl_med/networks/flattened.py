"""Features of a network as one vector per case, of a size that was stated."""

from typing import Any

from torch import Tensor

from ppl_med.likelihoods import check_tensor


def flat_features(output: Any, num_features: int) -> Tensor:
    """A network's output as (case, feature).

    Args:
        output: Dims (case, ...).
        num_features: Features of a case that are expected.

    Raises:
        ValueError: If it is no tensor, or there are others.
    """
    check_tensor(output)
    found: Tensor = output.flatten(1)
    if found.shape[1] != num_features:
        raise ValueError(
            f"features gave {tuple(output.shape)}, {found.shape[1]} numbers per case, but "
            f"num_features is {num_features}; pass num_features={found.shape[1]}"
        )
    return found
