"""Guide of a diffusion model: the noising process of a mask or an image, with no parameters.

    x_T | mask  ~  q(x_T | x_0),    x_s | x_t, mask  ~  q(x_s | x_t, x_0)

Reference: Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020 (eq. 5).
"""

from functools import partial
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_med.axes import dims
from ppl_med.inference.guides.conditional_guide import ConditionalGuide
from ppl_med.programs.noising import Chain, counted


class Noising(ConditionalGuide):
    """The fixed proposal q(x_1, ..., x_T | mask); join it with a guide over the weights.

    Args:
        noising: The model's ``noising``: its steps, and whether they are all drawn.
        observation: Name of the observation's argument; "image" where the image itself is noised,
            as by ``ImageDiffusion``.
    """

    def __init__(self, noising: Chain, observation: str = "mask") -> None:
        super().__init__(observation)
        self.noising = noising

    def propose(self, image: Tensor, value: Any) -> None:
        """Draw the states from the last to the first."""
        value = image if self.observation == "image" else value
        process, state = self.noising, self.noising.encode(value)
        seen = process.seen(value)
        names = dims(*process.event, stored=False)
        last = process.noised(state, process.kept[-1].expand(len(image)), seen)
        drawn = pyro.sample(f"x{process.num_steps}", counted(last, seen), infer=names)
        if process.form == "slow":
            for later, earlier in process.grid()[:-1]:
                full = partial(torch.full, (len(image),), device=image.device)
                at = process.at(full(later), full(earlier))
                law = counted(process.posterior(drawn, state, at, seen), seen)
                drawn = pyro.sample(f"x{earlier}", law, infer=names)
            return
        particles = process.num_particles(training=self.training)
        with pyro.plate("step", process.num_steps, subsample=torch.arange(particles), dim=-2):
            with poutine.mask(mask=False):
                law = process.steps_of((particles, len(image)), image.device)
                step = pyro.sample("at_step", law, infer=dims(stored=False))
                spread = state.expand(particles, *state.shape)
                law = process.noised(spread, process.kept[step], seen)
                noised = pyro.sample("noised", law, infer=names)
            unfinished: Any = step > 1  # of the others, the mask itself is scored
            with poutine.mask(mask=unfinished):
                after = step.clamp(min=2)
                law = process.posterior(noised, spread, process.at(after, after - 1), seen)
                pyro.sample("earlier", counted(law, seen), infer=names)
