"""A plain Pyro function, trained and read like any model of the zoo.

Two rules: the observation site bears the name of its argument (``stain``), and what belongs to one
case stands in the plate "case"; ``check_program`` names what is wrong. The data are simulated.
"""

import arviz_stats
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from ppl_med import storage
from ppl_med.data import Batches, blood_smear
from ppl_med.inference import fit, predict
from ppl_med.storage import open_run
from ppl_med.testing import check_program
from write_your_own.options import Options


def model(image: Tensor, stain: Tensor | None = None, *, num_cases: int | None = None) -> Tensor:
    """Say that stain | image ~ Normal(intercept + slope . (brightness, contrast), noise)."""
    features = torch.stack([4 * image.mean((1, 2, 3)), 4 * image.std((1, 2, 3))], dim=1) - 1
    slope = pyro.sample("slope", dist.Normal(0.0, torch.ones(2)).to_event(1))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 5.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    mean = intercept + features @ slope
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("stain", dist.Normal(mean, noise), obs=stain)
    return mean


def main(options: Options) -> None:
    """Simulate, check, fit, predict, and compare the posterior with the truth."""
    folder = open_run(options.out, resume=options.resume)
    image = torch.from_numpy(blood_smear(500, seed=options.seed)["image"]).float() / 255
    torch.manual_seed(options.seed)
    truth = {"slope": torch.tensor([1.5, -0.7]), "intercept": torch.tensor(2.0)}
    truth["noise"] = torch.tensor(0.3)
    simulated = pyro.poutine.trace(pyro.condition(model, truth)).get_trace(image)
    batch = {"image": image, "stain": simulated.nodes["stain"]["value"]}
    check_program(model, batch)
    guide = AutoMultivariateNormal(model)  # MeanFieldNormal would halve the slopes' sd here
    fit(model, guide, Batches(batch, batch_size=500), epochs=20 if options.smoke else 3000,
        learning_rate=0.02, schedule="cosine", checkpoint=folder / "checkpoint.pt",
        resume=options.resume, seed=options.seed, device=options.device)  # fmt: skip
    tree = predict(
        model, guide, [batch], draws=200, log_likelihood_of="training", seed=options.seed
    )
    storage.save(tree, folder / "posterior.nc")
    print("Truth:", {name: value.tolist() for name, value in truth.items()})
    print(arviz_stats.summary(tree, var_names=list(truth), kind="stats"))
    print(arviz_stats.loo(tree))
