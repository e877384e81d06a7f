"""M-Heads: one U-Net with several output heads, of which a case uses one.

Program, for a case with image x:

    head            ~  Categorical(1/M, ..., 1/M)                     one per case
    mask | x, head  ~  Categorical(softmax(head_h(unet(x))))          one class per pixel

Sites and their dimensions: head (case), integer in 0..M-1; mask (case, row, col) or (case, depth,
row, col), integer in 0..K-1, or -1 where not annotated.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

Reference: Rupprecht et al., "Learning in an uncertain world: representing ambiguity through
multiple hypotheses", ICCV 2017; a baseline of Kohl et al., NeurIPS 2018. Their loss, the best
head's cross-entropy and a small share of the others', is the ELBO of this program under the guide
``BestHead``. All heads weigh the same, so frequencies of outcomes are multiples of 1/M.
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_med.axes import SPACE
from ppl_med.checks import whole
from ppl_med.likelihoods import Categorical
from ppl_med.networks.unet import CHANNELS, UNet, convolution
from ppl_med.weights.call_cache import cached_call


class MultiHeadUNet(nn.Module):
    """The joint p(mask, head | image).

    Args:
        in_channels: Image channels.
        classes: Class names, the background first.
        heads: Number of heads M.
        channels: Channels of the U-Net by scale, the finest first.
        num_convolutions: Convolutions per block.
        spatial_dims: 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        heads: int = 16,
        channels: Sequence[int] = CHANNELS,
        num_convolutions: int = 3,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        whole("heads", heads, 2, fix="one head is a plain U-Net")
        self.in_channels, self.heads = in_channels, heads
        unet = UNet(in_channels, channels, num_convolutions, spatial_dims)
        output = convolution(spatial_dims, channels[0], heads * len(classes), 1)
        self.network = nn.Sequential(unet, output)
        self.likelihood = Categorical(classes, SPACE[spatial_dims], site="mask", partial=True)
        self.coords = {"class": list(classes)}

    def all_heads(self, image: Tensor) -> Tensor:
        """Logits of every head, dims (case, head, class, *space)."""
        output: Tensor = cached_call(self.network, image)
        return output.view(len(image), self.heads, -1, *image.shape[2:])

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``mask`` if given: logits of the head (case, class, *space).

        Args:
            image: A batch of images, dims (case, channel, *space).
            mask: One grader's classes, dims (case, *space), integers; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        logits = self.all_heads(image)
        weights = torch.zeros(len(image), self.heads, device=image.device)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            head = pyro.sample("head", dist.Categorical(logits=weights))
            chosen = logits[torch.arange(len(image), device=image.device), head]
            self.likelihood(chosen, mask)
        return chosen
