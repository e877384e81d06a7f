"""CPU time until a held-out NLL and ELBO are reached, by estimator of `MeanFieldNormal`.

An estimator of lower variance may be worth a dearer step, or not: only the time to a result tells.
Each estimator trains a net for the same CPU time of its steps (evaluations are not counted), once
at every learning rate under the first seed, then at the rate that was best for the figure under the
others. The level of a seed is the best value of the estimator that comes less far there, which both
have reached; the ratio is the time of the estimator until then over that of ``shared``, by seed.
Where curves level off, ratios of single seeds are mostly noise: of two runs of one estimator that
have fallen to their last 0.2 %, with noise of 2.5 % of the fall, 90 % would be 0.66 to 1.52; of
two that fall throughout, 0.90 to 1.12. Ratios of one side in every seed tell more than their size.

Data: malaria cells by patient (LeNet and ResNet-18 at 28 pixels, AlexNet at 64), lung nodules
with the majority of four readers (U-Net, 64 pixels); held-out cases are of the validation parts,
from ``PPL_MED_DATA``. Runs that are in --runs are not repeated.

    python tests/benchmarks/time_to_nll.py --nets lenet unet --out time_to_nll.md
"""

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from measure import check_out, machine, tune_allocator, write_table
from problems import NETS, Segmenter
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ppl_med.data import load_lidc, load_malaria
from ppl_med.inference import MeanFieldNormal, elbo_terms
from ppl_med.models import BayesianClassifier
from ppl_med.programs.elbo import total
from ppl_med.weights import FanInNormal

BATCH, DRAWS, EVALUATIONS = 32, 4, 12
FIGURES = ("nll", "elbo_loss")
Curve = dict[str, list[float]]


@dataclass(frozen=True)
class Recipe:
    """How a net is trained, the same for every estimator.

    Attributes:
        pixels: A side of its images.
        seconds: CPU time of a run.
        rates: Learning rates that are tried.
        init_scale: Start of the scales.
        held_out: Cases.
    """

    pixels: int
    seconds: float
    rates: tuple[float, ...]
    init_scale: float = 0.05
    held_out: int = 256


RECIPES = {
    "lenet": Recipe(28, 30.0, (3e-3, 1e-3, 3e-4)),
    "resnet18": Recipe(28, 60.0, (1e-3, 3e-4)),
    "unet": Recipe(64, 60.0, (6e-3, 3e-3), 0.02, 96),
    "alexnet": Recipe(64, 200.0, (3e-4,), 0.02),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument("--estimators", nargs="+", default=["shared", "auto"])
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates (default: a net's)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, help="CPU time of a run (default: a net's)")
    parser.add_argument("--runs", type=Path, help="folder that keeps every run's curve, as .json")
    parser.add_argument("--smoke", action="store_true", help="runs of a second")
    parser.add_argument("--out", type=Path, help="also write the table, as .json or .md")
    arguments = parser.parse_args()
    if "shared" not in arguments.estimators:
        parser.error("--estimators must hold shared, which the others are compared with")
    if not os.environ.get("PPL_MED_DATA"):
        parser.error("PPL_MED_DATA must name the folder that holds malaria/ and lidc/")
    check_out(parser, arguments.out)
    return arguments


def split(arrays: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Images and targets of a part of a data set, at the net's size, as the model's arguments."""
    image = torch.as_tensor(np.asarray(arrays["image"]), dtype=torch.float32)
    if name == "unet":
        votes = torch.as_tensor(np.asarray(arrays["mask"])).float().mean(1)
        return {"image": (image - image.mean()) / image.std(), "mask": (votes >= 0.5).long()}
    size, channels = RECIPES[name].pixels, NETS[name][2]
    image = interpolate(image, (size, size), mode="bilinear", antialias=True)
    image = ((image - image.mean()) / image.std()).expand(-1, channels, -1, -1).contiguous()
    return {"image": image, "label": torch.as_tensor(np.asarray(arrays["label"]))}


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training cases, and held-out cases of the validation part, drawn once for all runs."""
    folder = os.environ["PPL_MED_DATA"]
    parts: dict[str, dict[str, Any]] = (
        load_lidc(folder, size=64, resize="crop") if name == "unet" else load_malaria(folder)
    )
    train, held_out = split(parts["train"], name), split(parts["val"], name)
    order = np.random.default_rng(0).permutation(len(held_out["image"]))[: RECIPES[name].held_out]
    return train, {key: value[order] for key, value in held_out.items()}


def net_of(name: str, seed: int) -> nn.Module:
    """The model of a net; the seed decides its start."""
    torch.manual_seed(seed)
    if name == "unet":
        return Segmenter(NETS[name][1]())
    classes = ["uninfected", "parasitized"]
    net = NETS[name][1](len(classes))
    if name == "alexnet":  # its own start is so small that it learns nothing for hundreds of steps
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return BayesianClassifier(net, classes, prior=FanInNormal())


def evaluate(
    model: Any, guide: nn.Module, held_out: dict[str, Tensor], num_cases: int
) -> dict[str, float]:
    """Held-out figures under ``DRAWS`` draws of the weights; the generators are left as they were.

    Returns:
        ``nll``: of the mean over draws, nats a case (a pixel for masks); ``elbo_loss``: minus the
        ELBO of the data set with the held-out cases' NLL, nats a case.
    """
    model.eval()
    guide.eval()
    image, target = held_out["image"], held_out.get("label", held_out.get("mask"))
    assert target is not None
    log_probs = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for _ in range(DRAWS):
            drawn = pyro.poutine.trace(guide).get_trace(image)
            replayed = pyro.poutine.replay(model, trace=drawn)
            logits = torch.cat([replayed(one) for one in image.split(128)])
            log_prob = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
            log_probs.append(log_prob.flatten(1) if log_prob.dim() > 1 else log_prob[:, None])
        first = {key: value[:2] for key, value in held_out.items()}
        _, kl = elbo_terms(model, guide, **first, num_cases=num_cases)
    every = torch.stack(log_probs).double()
    nll = -(every.logsumexp(0) - np.log(DRAWS)).mean()
    elbo_loss = -every.sum(2).mean() + total(kl).double() / num_cases
    model.train()
    guide.train()
    return {"nll": float(nll), "elbo_loss": float(elbo_loss)}


def train(
    name: str,
    data: tuple[dict[str, Tensor], dict[str, Tensor]],
    estimator: Any,
    rate: float,
    seed: int,
    seconds: float,
) -> Curve:
    """One run's curve.

    Returns:
        ``seconds`` of CPU time in steps, ``step``, and the figures of `evaluate` there.
    """
    cases, held_out = data
    num_cases = len(cases["image"])
    model = net_of(name, seed)
    guide = MeanFieldNormal(model, RECIPES[name].init_scale, estimator)
    model.train()
    guide.train()
    parameters = [p for module in (model, guide) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, rate, fused=True)
    rng = np.random.default_rng(seed)
    curve: Curve = {"seconds": [], "step": [], **{key: [] for key in FIGURES}}
    spent, step, order = 0.0, 0, rng.permutation(num_cases)
    while True:
        if spent >= seconds * len(curve["step"]) / EVALUATIONS:
            for key, value in evaluate(model, guide, held_out, num_cases).items():
                curve[key].append(value)
            curve["seconds"].append(spent)
            curve["step"].append(step)
            if spent >= seconds:
                return curve
        if len(order) < BATCH:
            order = rng.permutation(num_cases)
        rows, order = order[:BATCH], order[BATCH:]
        batch = {key: value[rows] for key, value in cases.items()}
        start = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        nll, kl = elbo_terms(model, guide, **batch, num_cases=num_cases)
        ((total(nll) + total(kl)) / num_cases).backward()
        optimizer.step()
        spent += time.process_time() - start
        step += 1


def kept(settings: argparse.Namespace, name: str, data: Any, *which: Any) -> Curve:
    """A run's curve, from --runs where it is there."""
    estimator, rate, seed = which
    seconds = settings.seconds or (1.0 if settings.smoke else RECIPES[name].seconds)
    path = None
    if settings.runs is not None:
        settings.runs.mkdir(parents=True, exist_ok=True)
        path = settings.runs / f"{name}-{estimator}-{rate:g}-{seed}-{seconds:g}.json"
        if path.exists():
            found: Curve = json.loads(path.read_text())
            return found
    curve = train(name, data, estimator, rate, seed, seconds)
    print(
        f"{name} {estimator} rate {rate:g} seed {seed}: {curve['step'][-1]} steps, "
        f"NLL {curve['nll'][-1]:.4f}, minus ELBO {curve['elbo_loss'][-1]:.1f}",
        file=sys.stderr,
        flush=True,
    )
    if path is not None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(curve))
        part.replace(path)
    return curve


def reached(curve: Curve, figure: str, level: float) -> float:
    """CPU seconds until the best value so far is at the level, linear between evaluations."""
    best = np.fmin.accumulate(curve[figure])
    after = int(np.argmax(best <= level))
    if after == 0:
        return float(curve["seconds"][0])
    share = (best[after - 1] - level) / (best[after - 1] - best[after])
    low, high = curve["seconds"][after - 1], curve["seconds"][after]
    return float(low + share * (high - low))


def compared(
    own: list[dict[str, Any]], shared: list[dict[str, Any]], figure: str
) -> dict[str, Any]:
    """Time ratios of an estimator's curves to those of ``shared`` and its best values, by seed."""
    ratios = []
    for pair in zip(own, shared, strict=True):
        level = max(min(curve[figure]) for curve in pair)
        times = [reached(curve, figure, level) for curve in pair]
        with np.errstate(divide="ignore", invalid="ignore"):  # none falls below its start: NaN
            ratios.append(float(np.float64(times[0]) / times[1]))
    return {"ratios": ratios, "best": [min(curve[figure]) for curve in own]}


def measure(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table, one a net and estimator; each figure has the rate that is best for it."""
    rows = []
    for name in settings.nets:
        data = read(name)
        first, *others = settings.seeds
        curves: dict[tuple[str, str], list[Curve]] = {}
        rates: dict[tuple[str, str], float] = {}
        for estimator in settings.estimators:
            tried = {
                rate: kept(settings, name, data, estimator, rate, first)
                for rate in settings.rates or RECIPES[name].rates
            }
            runs = {(rate, first): curve for rate, curve in tried.items()}
            for figure in FIGURES:
                best = min(
                    tried, key={rate: min(tried[rate][figure]) for rate in tried}.__getitem__
                )
                rates[estimator, figure] = best
                for seed in others:
                    if (best, seed) not in runs:
                        runs[best, seed] = kept(settings, name, data, estimator, best, seed)
                curves[estimator, figure] = [runs[best, seed] for seed in settings.seeds]
        for estimator in settings.estimators:
            every = [curve for figure in FIGURES for curve in curves[estimator, figure]]
            each = [1e3 * curve["seconds"][-1] / curve["step"][-1] for curve in every]
            row: dict[str, Any] = {
                "net": name,
                "estimator": estimator,
                "milliseconds": float(np.median(each)),
            }
            for figure in FIGURES:
                found = compared(curves[estimator, figure], curves["shared", figure], figure)
                row[figure] = {"rate": rates[estimator, figure], **found}
            rows.append(row)
    return rows


def table(header: str, rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        header,
        "",
        "| net | estimator | ms a step | NLL: rate | best | time / shared | minus ELBO: rate "
        "| best | time / shared |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def cells(found: dict[str, Any], digits: int) -> str:
        best = " ".join(f"{value:.{digits}f}" for value in found["best"])
        ratios = " ".join(f"{value:.2f}" for value in found["ratios"])
        return f"{found['rate']:g} | {best} | {ratios}"

    for row in rows:
        lines.append(
            f"| {row['net']} | {row['estimator']} | {row['milliseconds']:.1f} "
            f"| {cells(row['nll'], 4)} | {cells(row['elbo_loss'], 1)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    settings = parse()
    tune_allocator()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    warnings.simplefilter("ignore")
    rows = measure(settings)
    header = (
        f"Seeds {' '.join(map(str, settings.seeds))}; batch {BATCH}; {DRAWS} draws; "
        f"{machine(torch.device('cpu'), 1)}."
    )
    text = table(header, rows)
    print(text)
    write_table(settings.out, {"header": header, "rows": rows}, text)


if __name__ == "__main__":
    main()
