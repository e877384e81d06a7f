"""The study from end to end."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr

from counterfactuals.judges import (
    GENERATIVE,
    NAIVE,
    PARTICLES,
    figures,
    judged,
    real,
    reconstructed,
)
from counterfactuals.options import Options
from counterfactuals.study import CLASSES, SIZES, Study, choose
from ppl_med import storage
from ppl_med.analysis import scoring
from ppl_med.explain import (
    diffusion_counterfactual,
    latent_counterfactual,
    minimal_perturbation,
    nearest_case,
    sparse_additive,
)
from ppl_med.inference import functions, predict
from ppl_med.networks import CompactCNN, LeNet
from ppl_med.plots.counterfactual import side_by_side
from ppl_med.plots.report import Section, paragraph, picture, write_report
from ppl_med.plots.report import table as html_table
from ppl_med.storage import open_run

DIFFUSION = "through a diffusion"
SHOWN = 3  # cases of each class in the figure


def explain(study: Study, net: tuple[Any, Any], vae: tuple[Any, Any], chosen: np.ndarray):
    """Counterfactuals of every kind.

    Returns:
        Results by kind.
    """
    options = study.options
    device = next(iter(net[1].parameters())).device
    image, _, ids = study.tensors(chosen, device)
    search = functions(*net, draws=options.draws, seed=options.seed)
    judges = functions(*net, draws=4 * options.draws, seed=options.seed + 1)
    with torch.no_grad():
        logits = torch.stack([function(image) for function in search])
    target = 1 - logits.softmax(2).mean(0).argmax(1)
    settings: dict[str, Any] = {"judges": judges, "case": ids}
    boxed = settings | {"bounds": study.bounds}
    fast = 3 if options.smoke else 30
    ways: dict[str, Callable[..., xr.Dataset]] = {
        "minimal perturbation": lambda: minimal_perturbation(
            search, image, target, steps=fast, **boxed
        ),
        "sparse additive map": lambda: sparse_additive(
            search, image, target, steps=max(3, fast // 2), **boxed
        ),
        "latent": lambda: latent_counterfactual(
            search, image, target, vae=vae, encode_as="target", steps=fast, particles=PARTICLES,
            **settings,
        ),
    }  # fmt: skip
    if "diffusion" in options.method:
        chain, (references, label) = study.diffusion(options.seed), study.references()
        own = {"references": references.to(device), "reference_label": label.to(device)}
        ways[DIFFUSION] = lambda: diffusion_counterfactual(
            search, image, target, diffusion=chain, depth=0.6, steps=fast, **settings
        )
        ways["nearest training image"] = lambda: nearest_case(
            search, image, target, **own, **settings
        )
    found = {}
    for kind, way in ways.items():
        print(f"{study.name}: {kind}")
        found[kind] = way()
    return found


HEAD = (
    "kind", "flipped, p > 0.5, %", "mean flip probability [90 % of draws]", "flips another net, %",
    "L1", "L2", "unchanged pixels, %", "high frequencies, %", "realism, nats",
    "realism less that of the smallest change", "real images that are less likely, %",
)  # fmt: skip


def rows(table: xr.Dataset) -> list[list[str]]:
    """Cells of the table."""

    def with_error(one: xr.Dataset, name: str, digits: int = 1) -> str:
        return f"{float(one[name]):.{digits}f} ± {float(one[f'{name}_se']):.{digits}f}"

    lines = []
    for kind in table["kind"].values:
        one = table.sel(kind=kind)
        low, high = (float(one[f"flip_probability_{end}"]) for end in ("lower", "upper"))
        lines.append([
            str(kind),
            f"{100 * float(one['flipped']):.0f}",
            f"{float(one['flip_probability']):.2f} [{low:.2f}, {high:.2f}]",
            f"{100 * float(one['transferred']):.0f} ± {100 * float(one['transferred_se']):.0f}",
            f"{float(one['l1']):.0f}",
            f"{float(one['l2']):.1f}",
            f"{100 * float(one['sparsity']):.0f}",
            f"{100 * float(one['high_frequency_share']):.0f}",
            with_error(one, "realism", 0),
            with_error(one, "realism_gain", 1),
            f"{100 * float(one['rank_among_real']):.0f}",
        ])  # fmt: skip
    return lines


def verdict(study: Study, table: xr.Dataset, realism: dict[int, np.ndarray], smooth: float) -> str:
    """What the table says, in words."""
    wanted = [part.mean() for part in realism.values()]
    within = np.mean([part.var(ddof=1) for part in realism.values()]) ** 0.5
    gain = table["realism_gain"].sel(kind=list(GENERATIVE))
    least = 100 * float(table["flipped"].min())
    sparse = float(table["realism"].sel(kind=NAIVE[1]))
    above = bool((gain > 0).all() and (table["realism"].sel(kind=list(GENERATIVE)) > sparse).all())
    word = "higher" if above else "not all higher"
    return (
        f"{int(table['flipped_num'][0])} {study.options.part} cases. Every kind flips at least "
        f"{least:.0f} % of them with posterior probability above 0.5. The realism of the "
        f"generative kinds is {word} than that of the naive ones; real images of the wanted class "
        f"have {np.mean(wanted):.0f} nats (standard deviation {within:.0f}), the explained ones "
        f"passed through the VAE as the class that they are {smooth:.0f}: so much of the gain is "
        "that a generated image has no noise."
    )


def section(study: Study, results: dict[str, xr.Dataset], table: xr.Dataset, text: str) -> Section:
    """A data set's part of the report."""
    first = next(iter(results.values()))
    shown = slice(0, min(2 * SHOWN, first.sizes["case"]))
    faces = side_by_side(
        {kind: one.isel(case=shown) for kind, one in results.items()},
        CLASSES[study.name],
        unit="sd of training pixels",
    )
    alt = "Images, counterfactuals of three kinds, and the changes with signed colour bars."
    return Section(
        study.name,
        f"Counterfactuals: {study.name}",
        paragraph(text) + picture(faces, alt, wide=True) + html_table(HEAD, rows(table)),
    )


def run(study: Study) -> tuple[xr.DataTree, xr.Dataset, Section, str]:
    """Train, predict, explain and judge on one data set."""
    options, seed = study.options, study.options.seed
    net = study.classifier(LeNet(1, 2, size=SIZES[study.name]), seed + 100, 1e-3)
    other_net = study.classifier(CompactCNN(), seed, 3e-3)
    vae, other_vae = study.vae(seed), study.vae(seed + 100)
    tree = predict(*net, study.part, draws=4 * options.draws, seed=seed, device=options.device)
    storage.save(tree, study.folder / "posterior.nc")
    chosen, others = choose(study, tree)
    results = {
        kind: judged(one, other_net, other_vae, seed)
        for kind, one in explain(study, net, vae, chosen).items()
    }
    for kind, one in results.items():
        storage.save(one, study.folder / f"{kind.replace(' ', '-')}.nc")
    realism = real(study, other_vae, others)
    table = figures(results, realism)
    smooth = reconstructed(results[NAIVE[0]], vae, other_vae, seed)
    text = verdict(study, table, realism, smooth)
    if DIFFUSION in results:
        one = results[DIFFUSION]
        lost, moved = float(one["round_trip"].mean()), float((one["change"] ** 2).mean() ** 0.5)
        text += (
            f" The way up the diffusion chain and down again, with no pull, is off by {lost:.2f} "
            f"sd of training pixels (root mean square); the change is {moved:.2f}."
        )
    return tree, table, section(study, results, table, text), text


def main(options: Options) -> None:
    """Run every data set, print and save the tables, write the report."""
    open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    found = {name: run(Study(options, name)) for name in options.dataset}
    names = xr.DataArray(list(found), dims="dataset", name="dataset")
    tables = [table for _, table, _, _ in found.values()]
    storage.save(xr.concat(tables, names), options.out / "table.nc")
    parts = [
        f"{name}\n\n{storage.markdown_table(HEAD, rows(t))}\n\n{text}"
        for name, (_, t, _, text) in found.items()
    ]
    storage.write_text(options.out / "table.md", "\n\n".join(parts) + "\n")
    print("\n" + "\n\n".join(parts))
    tree = next(iter(found.values()))[0]
    write_report(
        options.out / "report.html",
        title="What would have to differ for another class?",
        smoke=options.smoke,
        tree=tree,
        scores=scoring.score(tree),
        sections=[part for _, _, part, _ in found.values()],
        notes=(
            "Minimal perturbations and sparse maps may put any value into any pixel: that they "
            "flip the class says how the network can be fooled. Whether another network agrees, "
            "and how likely the image is, tells an attack from an explanation.",
            "Realism is judged by a VAE that took no part in making the images. A generated "
            "image is a mean without the noise of pixels: it can be more likely than any real one.",
        ),
    )
    print(f"Wrote {options.out / 'table.md'} and {options.out / 'report.html'}")
