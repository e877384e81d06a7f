"""Classifiers of bags of instances: an image is a bag of patches, and the label is the bag's.

With features h_i of the N patches of an image and attention a_i, which sums to 1 over them:

    AttentionMIL    logits = W Σ a_i h_i + b
    AdditiveMIL     logits = Σ c_i + b,      c_i = ψ(N a_i h_i) / N

c_i is what patch i adds to the logits, exactly, so ``attribute(..., method="additive")`` is the
evidence itself and no approximation of it. a_i (``method="attention"``) says where the net looks
and not for which class: it is relative within the image and sums to 1 in a healthy scan as well,
so it is no probability of disease, nor comparable between images.

    attention       a_i ∝ exp(wᵀ (tanh(V h_i) ⊙ sigmoid(U h_i)))

References: Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning", ICML 2018,
equation 9; Javed et al., "Additive MIL: intrinsically interpretable multiple instance learning for
pathology", NeurIPS 2022 (equation 5 with its scale N, so that ψ sees features of one size whatever
the number of patches).
"""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.checks import choice, whole


class GatedAttention(nn.Module):
    """Weights of the positions of a feature map, (case, 1, *space), that sum to 1 over space.

    Args:
        spatial_dims: 2 or 3.
        num_features: Channels of the feature map.
        hidden: Units of V and of U.
    """

    def __init__(self, spatial_dims: int, num_features: int, hidden: int = 16) -> None:
        super().__init__()
        conv = _convolution(spatial_dims)
        self.value = conv(num_features, hidden, 1)
        self.gate = conv(num_features, hidden, 1)
        self.score = conv(hidden, 1, 1, bias=False)  # softmax takes a constant away

    def forward(self, features: Tensor) -> Tensor:
        """Attention (case, 1, *space) of features (case, channel, *space)."""
        score = self.score(torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features)))
        return score.flatten(2).softmax(2).reshape(score.shape)


class _Contributions(nn.Module):
    """What each position adds to the logits: ψ(N a h) / N."""

    def __init__(self, spatial_dims: int, num_features: int, hidden: int, num_outputs: int) -> None:
        super().__init__()
        conv = _convolution(spatial_dims)
        self.layers = nn.Sequential(
            conv(num_features, hidden, 1), nn.ReLU(), conv(hidden, num_outputs, 1, bias=False)
        )

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        number = attention[0].numel()
        return self.layers(number * attention * features) / number


class _MultipleInstance(nn.Module):
    """Patches to features and attention; see the module."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        patch: int,
        num_features: int,
        hidden: int,
        encoder: nn.Module | None,
    ) -> None:
        super().__init__()
        choice("spatial_dims", spatial_dims, (2, 3))
        for name, value in (
            ("in_channels", in_channels),
            ("patch", patch),
            ("num_features", num_features),
            ("hidden", hidden),
        ):
            whole(name, value)
        self.in_channels, self.patch = in_channels, patch
        self.is_built_in = encoder is None
        conv = _convolution(spatial_dims)
        self.encoder = encoder or nn.Sequential(
            conv(in_channels, num_features, patch, stride=patch),
            nn.ReLU(),
            conv(num_features, num_features, 1),
            nn.ReLU(),
        )
        self.attention = GatedAttention(spatial_dims, num_features, hidden)

    def features(self, image: Tensor) -> Tensor:
        """Features of the patches, (case, feature, *grid).

        Raises:
            ValueError: The image's sides are no multiples of the patch.
        """
        uneven = [side for side in image.shape[2:] if side % self.patch]
        if self.is_built_in and uneven:
            raise ValueError(
                f"image has sides {tuple(image.shape[2:])}, which are no multiples of patch="
                f"{self.patch}: the rest would be seen by no patch; pad it or change the patch"
            )
        return self.encoder(image)


class AttentionMIL(_MultipleInstance):
    """Attention-based pooling of patches (Ilse et al. 2018, gated), 2D or 3D; see the module.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels.
        num_outputs: Output units, one per class.
        patch: Side of a patch in pixels; patches do not overlap.
        num_features: Features of a patch.
        hidden: Units of the attention.
        encoder: Net from images to features (case, num_features, *grid) of instances, instead of
            the built-in one, which sees one patch at a time. A position may see beyond its cell of
            the grid then, and ``patch`` is not used.

    Raises:
        ValueError: A size is below 1.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_outputs: int = 2,
        *,
        patch: int = 4,
        num_features: int = 16,
        hidden: int = 16,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__(spatial_dims, in_channels, patch, num_features, hidden, encoder)
        self.classifier = nn.Linear(num_features, num_outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (case, class) of images (case, channel, [depth,] row, col)."""
        features = self.features(image)
        pooled = (self.attention(features) * features).flatten(2).sum(2)
        return self.classifier(pooled)


class AdditiveMIL(_MultipleInstance):
    """Patches whose contributions sum to the logits (Javed et al. 2022), 2D or 3D; see the module.

    Args:
        spatial_dims: As in ``AttentionMIL``, and so are all others.
        in_channels: Image channels.
        num_outputs: Output units, one per class.
        patch: Side of a patch.
        num_features: Features of a patch.
        hidden: Units of the attention and of ψ.
        encoder: Net to features of instances.

    Raises:
        ValueError: A size is below 1.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_outputs: int = 2,
        *,
        patch: int = 4,
        num_features: int = 16,
        hidden: int = 16,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__(spatial_dims, in_channels, patch, num_features, hidden, encoder)
        self.contributions = _Contributions(spatial_dims, num_features, hidden, num_outputs)
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (case, class) of images (case, channel, [depth,] row, col)."""
        features = self.features(image)
        parts = self.contributions(features, self.attention(features))
        return parts.flatten(2).sum(2) + self.bias


def _convolution(spatial_dims: int) -> Any:
    return nn.Conv2d if spatial_dims == 2 else nn.Conv3d
