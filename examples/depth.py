"""Depth from one image: noise that the net learns, uncertainty of its weights, and their use.

Trains four variants of one small U-Net (Kendall and Gal, NeurIPS 2017) on synthetic scenes whose
noise is known at every pixel, with less and less data, and tests them on new scenes, and on shifted
ones with the same distribution of depth and a look that no training scene has. The truth is known:

    aleatoric variance   should be that of the noise, whatever the number of training scenes
    epistemic variance   should fall with the number of scenes, and rise on shifted ones

Weights are drawn by an ensemble; --guide dropout takes dropout, which at a rate of 0.05 before the
last layer alone overrated the noise by 0.06 m, at a correlation of 0.85 with the truth.

Writes to the output folder, for every run (variant, fraction, seed), checkpoint.pt, history.nc and
figures.nc, for the runs in the report posterior-<images>.nc, and for all of them

    table.md, table.nc   RMSE, NLL, CRPS, variances, learnt against true noise, calibration, AUSE
    report.html          maps, learnt noise, coverage, sparsification, variances by training size

Test scenes have no outliers; --outliers puts them into training scenes. Finished runs are kept with
--resume.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
import xarray as xr
from ambiguous_masks.pages import tables
from dense_uncertainty.variants import (
    Cell,
    StudyOptions,
    assemble,
    cells,
    draws_of,
    draws_weights,
    guide_of,
    learns_noise,
    rows_of,
    share,
    train,
)
from scipy import stats
from scipy.special import logsumexp
from torch import nn

from ppl_med import storage
from ppl_med.analysis import calibration, scoring, selective, uncertainty
from ppl_med.data import Batches, depth_scenes, standardization
from ppl_med.inference import predict
from ppl_med.likelihoods import Gaussian, LaplaceNoise
from ppl_med.models import DenseRegressor
from ppl_med.networks import UNet, unet
from ppl_med.plots import number_calibration
from ppl_med.plots import selective as selective_figures
from ppl_med.plots.depth import depth_maps, noise_recovery
from ppl_med.plots.report import Section, paragraph, picture, write_report
from ppl_med.storage import check_same, open_run

SHIFTS: tuple[Literal["none", "colour", "texture"], ...] = ("none", "colour", "texture")
NAMES = {"none": "like training", "colour": "shifted colour", "texture": "shifted texture"}
LIKELIHOODS: dict[str, Any] = {"gaussian": Gaussian, "laplace": LaplaceNoise}
LAWS = {"gaussian": "normal", "laplace": "laplace"}
SCENE_SEEDS = {"val": 1_000_000, "test": 2_000_000}  # far from the seeds of training scenes
BINS = 10
START_SCALE = 0.3  # metres, where one scale for all pixels starts: Adam moves it slowly
# Title, digits and factor of every figure of the table.
COLUMNS = {
    "rmse": ("RMSE m", 3, 1.0),
    "nll": ("NLL nats", 3, 1.0),
    "crps": ("CRPS m", 4, 1.0),
    "aleatoric": ("aleatoric variance ×10⁻³ m²", 1, 1e3),
    "epistemic": ("epistemic variance ×10⁻³ m²", 2, 1e3),
    "true_variance": ("true noise variance ×10⁻³ m²", 1, 1e3),
    "correlation": ("noise sd, correlation with truth", 3, 1.0),
    "sd_error": ("noise sd, calibration error m", 4, 1.0),
    "interval_error": ("interval calibration error", 3, 1.0),
    "ause": ("AUSE m", 4, 1.0),
}
PUBLISHED = (
    "Make3D, ¼ of the data: RMS 5.76, aleatoric 0.506, epistemic 7.73; ½: 4.62, 0.521, 4.38; all: "
    "3.87, 0.485, 2.78. Tested on NYUv2 instead: ¼: 0.388 and 15.0; all: 0.461 and 4.87 (Kendall "
    "and Gal, NeurIPS 2017, table 3). Those are real outdoor scenes, a DenseNet and other depths; "
    "what can be compared is the direction of every change."
)


@dataclass
class Options(StudyOptions):
    """Train four variants of a depth net on scenes of known noise."""

    out: Path = Path("runs/depth")
    """Folder for the results; an earlier study in it is moved aside."""
    split: Literal["val", "test"] = "val"
    """Scenes to compare on. Choose settings on val; use test once, at the end."""
    likelihood: Literal["gaussian", "laplace"] = "gaussian"
    """Distribution of the noise that the net assumes."""
    noise: Literal["gaussian", "laplace"] | None = None
    """Distribution of the noise in the scenes; that of the likelihood by default."""
    outliers: float = 0.0
    """Share of the training pixels whose depth is an echo from elsewhere."""
    scenes: int = 160
    """Training scenes."""
    size: int = 32
    """Rows and columns, pixels."""
    channels: tuple[int, ...] = (16, 24)
    """Channels of the U-Net by scale, the finest first."""
    steps: int = 700
    """Training steps, the same for every fraction."""
    batch_size: int = 4
    """Images in a training step."""
    members: int = 3
    """Nets of the ensemble, each trained for all steps."""
    guide: Literal["dropout", "ensemble"] = "ensemble"
    """Distribution over weights, in the variants that have one."""
    rate: float = 0.02
    """Rate of dropout."""
    cases: int = 50
    """Test scenes of every kind."""

    def shrink(self) -> None:
        """Make everything small, for --smoke."""
        self.scenes, self.size, self.channels = 16, 16, (4, 6)
        self.steps, self.draws, self.members, self.cases = 4, 4, 2, 6


class _Centre(nn.Module):
    """Adds a depth to the first output, so that a net that knows nothing predicts it."""

    offset: torch.Tensor

    def __init__(self, middle: float) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(middle))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1] + self.offset, output[:, 1:]], 1)


class Study:
    """The scenes and the runs of one call."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.tests = {
            shift: depth_scenes(
                options.cases,
                size=options.size,
                noise=self.noise,
                shift=shift,
                seed=SCENE_SEEDS[options.split],
            )
            for shift in SHIFTS
        }

    @property
    def noise(self) -> Literal["gaussian", "laplace"]:
        """Distribution of the noise in the scenes."""
        return self.options.noise or self.options.likelihood

    def training(self, cell: Cell) -> tuple[Batches, dict[str, Any], float]:
        """Batches of a run, standardisation for every other one, and the mean depth."""
        options = self.options
        scenes = depth_scenes(
            options.scenes, size=options.size, noise=self.noise,
            outlier_fraction=options.outliers, seed=cell.seed,
        )  # fmt: skip
        loc, scale = standardization(scenes["image"])
        settings = {"loc": loc, "scale": scale}
        kept = {name: scenes[name] for name in ("image", "depth", "id")}
        batches = Batches(kept, batch_size=options.batch_size, shuffle=True, **settings)
        part = share(batches, cell.fraction, cell.seed)
        return part, settings, float(np.median(scenes["depth"]))

    def build(self, cell: Cell, middle: float) -> tuple[DenseRegressor, Any]:
        """Model and guide of a run; predictions start at the depth ``middle``, metres."""
        torch.manual_seed(cell.seed)
        noisy = learns_noise(cell.variant)
        likelihood = LIKELIHOODS[self.options.likelihood](
            ("row", "col"), heteroscedastic=noisy, site="depth", init_scale=START_SCALE
        )
        channels = self.options.channels
        last = unet.convolution(2, channels[0], likelihood.num_outputs, 1)
        net = nn.Sequential(UNet(3, channels, 2), last, _Centre(middle))
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):  # as the scenes do; zeros differ
                layer.padding_mode = "replicate"
        model = DenseRegressor(net, likelihood)
        return model, guide_of(model, cell.variant, self.options, cell.seed)

    def trees(self, cell: Cell) -> dict[str, xr.DataTree]:
        """Train a run and predict all test scenes, or read what an earlier call left."""
        folder = self.folder / cell.name
        paths = {shift: folder / f"posterior-{shift}.nc" for shift in SHIFTS}
        if all(path.exists() for path in paths.values()):
            return {shift: storage.load(path) for shift, path in paths.items()}
        print(f"{cell.variant}, {cell.fraction:.0%} of the scenes, seed {cell.seed}")
        batches, settings, middle = self.training(cell)
        model, guide = self.build(cell, middle)
        train(model, guide, batches, self.options, cell, folder)
        found = {}
        for shift, scenes in self.tests.items():
            kept = {name: scenes[name] for name in ("image", "depth", "id")}
            test = Batches(kept, batch_size=64, **settings)
            found[shift] = predict(
                model, guide, test, draws=draws_of(cell.variant, self.options), seed=cell.seed,
                device=self.options.device,
            )  # fmt: skip
            if self.shown(cell):
                storage.save(found[shift], paths[shift])
        return found

    def shown(self, cell: Cell) -> bool:
        """Whether the report shows a run: all the data, first seed."""
        return (cell.fraction, cell.seed) == (max(self.options.fraction), self.options.seed[0])

    def figures(self, cell: Cell) -> xr.Dataset:
        """Every figure of a run (images), trained if need be."""
        path = self.folder / cell.name / "figures.nc"
        if path.exists():
            found = storage.load(path)
            assert isinstance(found, xr.Dataset)
            return found
        law = LAWS[self.options.likelihood]
        parts = [
            score(tree, self.tests[shift]["noise_sd"], law).expand_dims(images=[NAMES[shift]])
            for shift, tree in self.trees(cell).items()
        ]
        result = xr.concat(parts, "images")
        if not draws_weights(cell.variant):
            result["epistemic"] = xr.full_like(result["epistemic"], np.nan)
        storage.save(result, path)
        return result


def score(tree: xr.DataTree, noise_sd: np.ndarray, law: str) -> xr.Dataset:
    """All figures on one set of scenes.

    Args:
        tree: Of ``predict`` on them.
        noise_sd: True standard deviation of the noise (case, row, col), metres.
        law: Distribution of the likelihood: "normal" or "laplace".
    """
    parts = uncertainty.variance(tree, mcse=False)
    mean = tree["posterior/loc"].mean(("chain", "draw"))
    error = tree["observed_data/depth"] - mean
    coverage = calibration.coverage(tree, law=law)
    curve = selective.sparsification(tree, "total", "absolute", replicates=0)
    recovery = noise_table(np.sqrt(parts["aleatoric"].values), noise_sd)
    return xr.Dataset(
        {
            "rmse": float((error**2).mean() ** 0.5),
            "nll": _nll(tree, law),
            "crps": float(scoring.crps(tree)["crps_mean"]),
            "aleatoric": float(parts["aleatoric"].mean()),
            "epistemic": float(parts["epistemic"].mean()),
            "true_variance": float(np.square(noise_sd, dtype=np.float64).mean()),
            "correlation": float(recovery["correlation"]),
            "sd_error": float(recovery["sd_error"]),
            "interval_error": float(coverage["interval_error"]),
            "ause": float(curve["ause"]),
        }
    )


def _nll(tree: xr.DataTree, law: str) -> float:
    """Negative logarithm of the mixture's density at every pixel, mean, nats."""
    group = tree["posterior"].to_dataset().astype(np.float64)
    depth = tree["observed_data/depth"].astype(np.float64)
    loc, scale, depth = xr.broadcast(group["loc"], group["scale"], depth)
    family = {"normal": stats.norm, "laplace": stats.laplace}[law]
    axes = tuple(loc.get_axis_num(("chain", "draw")))
    density = logsumexp(family.logpdf(depth.values, loc.values, scale.values), axes)
    return float(np.log(loc.sizes["chain"] * loc.sizes["draw"]) - density.mean())


def noise_table(learnt: np.ndarray, true: np.ndarray, bins: int = BINS) -> xr.Dataset:
    """Compare learnt with true standard deviations of the noise.

    Args:
        learnt: Of every pixel, metres.
        true: Likewise.
        bins: Of equal mass by the learnt one.

    Returns:
        ``learnt`` and ``true`` (bin), root of the mean variance, metres; ``sd_error``, the mean
        over bins of their distance, metres; ``correlation`` over pixels, NaN where the learnt one
        is the same everywhere.
    """
    learnt, true = np.asarray(learnt, np.float64).ravel(), np.asarray(true, np.float64).ravel()
    order = np.array_split(learnt.argsort(kind="stable"), bins)
    roots = [[np.sqrt(np.mean(np.square(sd[part]))) for part in order] for sd in (learnt, true)]
    flat = np.ptp(learnt) < 1e-6 * learnt.max()
    result = xr.Dataset({"learnt": ("bin", roots[0]), "true": ("bin", roots[1])})
    result["correlation"] = np.nan if flat else np.corrcoef(learnt, true)[0, 1]
    result["sd_error"] = abs(result["learnt"] - result["true"]).mean()
    return result


def collect(study: Study) -> xr.Dataset:
    """Run everything that was asked for; the figures over variant, fraction, seed and images."""
    found = {}
    for cell in cells(study.options):
        found[cell] = study.figures(cell)
        result = assemble(found)
        storage.save(result, study.folder / "table.nc")
        text = storage.markdown_table(*rows_of(result, COLUMNS, "images"))
        storage.write_text(study.folder / "table.md", text + "\n")
    return result


def show(study: Study, result: xr.Dataset) -> None:
    """Write the report on the runs with all the data and the first seed."""
    options = study.options
    shown = [cell for cell in cells(options) if study.shown(cell)]
    trees = {cell.variant: study.trees(cell) for cell in shown}
    best = list(trees)[-1]
    head, lines = rows_of(result, COLUMNS, "images")
    sections = [
        Section(
            "table",
            "All figures",
            paragraph("Epistemic variance should fall with the data and rise on shifted scenes; "
                      "aleatoric variance should be that of the noise throughout.")
            + tables(head, lines, [slice(1, 9), slice(9, None)]),
        ),
        Section(
            "maps",
            f"{best}: depth, noise and epistemic uncertainty",
            paragraph("Learnt noise should look like the true one in every row; the epistemic sd "
                      "should be darkest in shifted scenes.")
            + picture(_examples(study, trees[best]), "Maps of three test scenes.", wide=True),
        ),
        *_noise_sections(study, trees),
    ]  # fmt: skip
    first = study.folder / Cell(best, max(options.fraction), options.seed[0]).name
    sizes = _sizes(result)
    write_report(
        study.folder / "report.html",
        title="Depth: what is noise, and what does the network not know?",
        tree=trees[best]["none"],
        history=storage.load(first / "history.nc"),
        data_size=sizes,
        sections=sections,
        notes=(
            f"{options.scenes} synthetic scenes of {options.size} × {options.size} pixels, "
            f"{options.steps} steps of {options.batch_size} at every fraction, {options.likelihood}"
            f" likelihood, {options.outliers:.0%} outliers in training.",
            PUBLISHED,
        ),
    )


def _examples(study: Study, trees: dict[str, xr.DataTree]) -> Any:
    """One scene like the training ones and, of the same layout, one of every shift."""
    joined = {
        group: xr.concat(
            [tree[group].to_dataset().isel(case=[0]) for tree in trees.values()],
            "case", data_vars="all",
        )
        for group in ("posterior", "observed_data")
    }  # fmt: skip
    tree = xr.DataTree.from_dict({f"/{name}": part for name, part in joined.items()})
    images = np.concatenate([study.tests[shift]["image"][:1] for shift in trees])
    truth = np.concatenate([study.tests[shift]["noise_sd"][:1] for shift in trees])
    return depth_maps(tree, images, noise_sd=truth)


def _noise_sections(study: Study, trees: dict[Any, dict[str, xr.DataTree]]) -> list[Section]:
    law = LAWS[study.options.likelihood]
    found = []
    noisy = [variant for variant in trees if learns_noise(variant)]
    if noisy:
        by_set = {}
        for shift, tree in trees[noisy[-1]].items():
            sd = np.sqrt(uncertainty.variance(tree, mcse=False)["aleatoric"].values)
            by_set[NAMES[shift]] = noise_table(sd, study.tests[shift]["noise_sd"])
        text = f"Of {noisy[-1]}: on the diagonal, the net knows how noisy its input is."
        figure = noise_recovery(by_set)
        body = paragraph(text) + picture(figure, "Learnt against true noise.")
        found.append(Section("noise", "The noise that was learnt", body))
    curves = {name: calibration.coverage(tree["none"], law=law) for name, tree in trees.items()}
    text = "On the diagonal, intervals hold as many depths as they say. Scenes like training."
    figure = number_calibration.coverage(curves)
    body = paragraph(text) + picture(figure, "Coverage of central intervals at every level.")
    found.append(Section("coverage", "Can the intervals be trusted?", body))
    best, tree = list(trees.items())[-1]
    known = ("total", "aleatoric", "epistemic") if draws_weights(best) else ("total",)
    curves = {
        name: selective.sparsification(tree["none"], name, "absolute", replicates=50)
        for name in known
    }
    text = (
        f"Error of {best} on the pixels that remain as the most uncertain are left out: a useful "
        "uncertainty falls towards the oracle, one that says nothing stays at random order."
    )
    figure = selective_figures.sparsification(curves)
    body = paragraph(text) + picture(figure, "Sparsification curves of the uncertainties.")
    found.append(Section("sparsification", "Which pixels to leave out?", body))
    return found


def _sizes(result: xr.Dataset) -> xr.Dataset | None:
    """Variances of the fullest variant by training size, one panel for every set of images."""
    known = [name for name in ("both", "epistemic") if name in result["variant"].values]
    if not known or result.sizes["fraction"] < 2:
        return None
    part = result.sel(variant=known[0], drop=True)[["aleatoric", "epistemic"]]
    part = part.rename(images="method").transpose("method", "fraction", "seed")
    for name in part:
        part[name].attrs["units"] = "m^2"
    return part


def main(options: Options) -> None:
    """Run the study, print and save its table, write the report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("variant", "fraction", "seed"))
    study = Study(options, folder)
    result = collect(study)
    print(storage.markdown_table(*rows_of(result, COLUMNS, "images")))
    show(study, result)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
