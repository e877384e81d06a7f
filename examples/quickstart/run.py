"""The study from end to end."""

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torchvision.transforms.functional import gaussian_blur

from ppl_med import storage
from ppl_med.analysis import conformal, scoring, uncertainty
from ppl_med.data import Batches, blood_smear, flips_and_turns, standardization
from ppl_med.explain.attribution import attribute
from ppl_med.explain.quality import mass_inside
from ppl_med.inference import MeanFieldNormal, fit, functions, predict
from ppl_med.models import BayesianClassifier
from ppl_med.networks import CompactCNN
from ppl_med.plots.report import write_report
from ppl_med.storage import open_run
from ppl_med.weights import Normal
from quickstart.options import Options

CLASSES = ("uninfected", "parasitized")
NOISE = 0.05
FRACTIONS = (1.0, 0.25, 0.0625)
BLUR = 3.0  # pixels


def without_truth(cells: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a laboratory has: images, noisy labels, ids."""
    return {name: cells[name] for name in ("image", "label", "id")}


def train(options: Options, folder: Path, batches: Batches, fraction: float):
    """Train one model on a fraction of the batches' cells.

    Returns:
        Model, guide and the training history.
    """
    torch.manual_seed(options.seed)
    model = BayesianClassifier(CompactCNN(), CLASSES, prior=Normal(scale=1.0))
    # One draw of the weights a batch costs half of the default's one a case, and does here.
    guide = MeanFieldNormal(model, init_scale=0.03, estimator="shared")
    part = batches.first(int(fraction * batches.num_cases))
    history = fit(
        model,
        guide,
        part,
        epochs=max(1, round(options.steps / len(part))),
        learning_rate=3e-3,
        schedule="cosine",
        device=options.device,
        seed=options.seed,
        checkpoint=folder / f"checkpoint-{fraction:g}.pt",
        resume=options.resume,
    )
    return model, guide, history


def main(options: Options) -> None:
    """Run the study."""
    folder = open_run(options.out, resume=options.resume)
    sizes = (256, 100, 100) if options.smoke else (4000, 1000, 1000)
    if options.smoke:
        options.steps, options.draws = 10, 8
    cells = [
        blood_smear(size, label_noise=NOISE, seed=10 * options.seed + part)
        for part, size in enumerate(sizes)
    ]
    for part, name in zip(cells, ("train", "calibration", "test"), strict=True):
        part["id"] = np.array([f"{name}-{cell}" for cell in part["id"]])
    loc, scale = standardization(cells[0]["image"])
    settings = {"loc": loc, "scale": scale, "batch_size": 250}
    training = Batches(
        without_truth(cells[0]),
        batch_size=64,
        shuffle=True,
        augment=flips_and_turns,
        loc=loc,
        scale=scale,
    )
    calibration_cells, test_cells = (Batches(without_truth(c), **settings) for c in cells[1:])

    by_fraction, kept = [], None
    for fraction in FRACTIONS:
        print(f"Training on {fraction:.0%} of {sizes[0]} cells")
        model, guide, history = train(options, folder, training, fraction)
        tree = predict(
            model, guide, test_cells, draws=options.draws, seed=options.seed, device=options.device
        )
        by_fraction.append(uncertainty.summary(tree))
        kept = kept or (model, guide, history, tree)
    model, guide, history, tree = kept

    calibration_tree = predict(
        model,
        guide,
        calibration_cells,
        draws=options.draws,
        seed=options.seed,
        device=options.device,
    )
    sets = conformal.predict_sets(conformal.calibrate(calibration_tree, alpha=0.1), tree)
    scores, reliability = scoring.score(tree), scoring.reliability(tree)
    attribution, inside = look(options, model, guide, test_cells, cells[2])
    growth = xr.concat(
        by_fraction, dim=xr.DataArray(list(FRACTIONS), dims="fraction", name="fraction")
    )

    storage.save(tree, folder / "posterior.nc")
    print_table(scores, sets, growth, inside, tree, cells[2])
    write_report(
        folder / "report.html",
        title="Parasites in blood-smear cells: a Bayesian CNN",
        smoke=options.smoke,
        tree=tree,
        history=history,
        images=cells[2]["image"],
        prediction_sets=sets,
        attribution=attribution.isel(case=slice(6)),
        mask=cells[2]["mask"],
        reliability=reliability,
        scores=scores,
        data_size=growth,
        notes=(
            f"Synthetic cells; {NOISE:.0%} of all labels are wrong on purpose, so no classifier "
            f"can agree with more than about {1 - NOISE:.0%} of them.",
            "Attributions are integrated gradients from the blurred image to the image: they say "
            "which fine detail speaks for a parasite. The outline is the true parasite.",
        ),
    )
    print(f"Wrote {folder / 'posterior.nc'} and {folder / 'report.html'}")


def look(options: Options, model, guide, batches: Batches, cells: dict[str, np.ndarray]):
    """Attribute the class "parasitized" on infected test cells, from their blurred images.

    Returns:
        Attribution Dataset, and how much of its positive mass lies inside the true mask.
    """
    infected = np.flatnonzero(cells["clean_label"] == 1)[: 8 if options.smoke else 64]
    batch = next(iter(batches.subset(infected, batch_size=len(infected))))
    image = batch["image"].to(next(iter(guide.parameters())).device)
    maps = attribute(
        functions(model, guide, draws=8, seed=options.seed),
        image,
        CLASSES.index("parasitized"),
        output="log_probability",
        baseline=gaussian_blur(image, [13, 13], [BLUR, BLUR]),
        tolerance=0.2,
        case=batch["id"],
        progress=True,
    )
    mask = xr.DataArray(cells["mask"][infected], dims=("case", "row", "col"))
    return maps, mass_inside(maps, mask.assign_coords(case=maps["case"]))


def print_table(scores, sets, growth, inside, tree, cells) -> None:
    """Print what the report shows in pictures."""
    guess = tree["posterior/probs"].mean(("chain", "draw")).argmax("class").values
    low, high = float(sets["coverage_lower"]), float(sets["coverage_upper"])
    mass, area = float(inside["mean_mass_share"]), float(inside["mean_area_share"])
    rows = {
        "agreement with noisy labels": f"{float(scores['accuracy']):.3f}",
        "accuracy on true labels": f"{(guess == cells['clean_label']).mean():.3f}",
        "NLL, nats per case": f"{float(scores['nll']):.3f}",
        "expected calibration error": f"{float(scores['ece']):.3f}",
        "coverage of 90 % sets": (
            f"{float(sets['coverage']):.3f} (99 % band {low:.3f} to {high:.3f})"
        ),
        "mean set size": f"{float(sets['set_size'].mean()):.2f}",
        "attribution inside the parasite": (
            f"{mass:.2f} of the mass on {area:.3f} of the area: "
            f"{float(inside['mean_ratio']):.1f} times"
        ),
    }
    for fraction in FRACTIONS:
        part = growth.sel(fraction=fraction)
        rows[f"variance at {fraction:.1%} of the data"] = (
            f"aleatoric {float(part['aleatoric']):.4f}, epistemic {float(part['epistemic']):.5f}"
        )
    width = max(len(name) for name in rows)
    print()
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    print()
