"""The study from end to end."""

import numpy as np
import xarray as xr

from brain_shape import pictures
from brain_shape.nets import NETS, Study
from brain_shape.options import Options
from brain_shape.sources import hippocampi, phantoms
from ppl_med import storage
from ppl_med.storage import check_same, open_run

DOTS = 100  # an inch
HEAD = (
    "subjects",
    "net",
    "accuracy at the site %",
    "at the honest site %",
    "honest, less the leaky net's",
    "effect of the outline on P(diseased)",
    "over draws, over subjects",
    "by seed",
)
OUTLINE_HEAD = ("subjects", "outline alone", "AUROC", "balanced accuracy %", "p")
KEY = (
    "Accuracies are means over seeds, with the range over seeds, and ± a standard error over "
    "subjects. The effect is the change of P(diseased) when healthy subjects of the first outline "
    "get outlines of the second, less the change by outlines of their own kind: its mean with a "
    "95 % interval over draws and subjects together (normal), then the 95 % interval over the "
    "draws of all seeds for these subjects, and the standard error over subjects."
)


def outline_rows(name: str, result: xr.Dataset) -> list[list[str]]:
    """What the outline alone tells."""
    lines = []
    for where in result["where"].values:
        value, low, high, share, p = (
            float(result[key].sel(where=where))
            for key in ("auroc", "auroc_lower", "auroc_upper", "balanced_accuracy", "p_value")
        )
        text = f"{value:.2f} [{low:.2f}, {high:.2f}]"
        lines.append([name, str(where), text, f"{100 * share:.0f}", f"{p:.2f}"])
    return lines


def net_rows(name: str, result: xr.Dataset) -> list[list[str]]:
    """Accuracies and effects of every net, and the accuracy without any image."""
    lines = []
    for net in NETS:
        part = result.sel(net=net)
        cells = []
        for on in ("site", "honest"):
            one, error = (
                100 * part["accuracy"].sel(on=on),
                100 * float(part["accuracy_se"].sel(on=on)),
            )
            cells.append(
                f"{float(one.mean()):.1f} ({float(one.min()):.1f} to {float(one.max()):.1f}) "
                f"± {error:.1f}"
            )
        gain, error = (100 * float(part[key].sel(on="honest")) for key in ("gain", "gain_se"))
        low, high = (float(part[f"expected_effect_{end}"]) for end in ("lower", "upper"))
        value, of_subjects = float(part["expected_effect"]), float(part["expected_effect_se"])
        both = 1.96 * float(np.hypot(part["draws_sd"], of_subjects))
        effect = f"{value:+.3f} [{value - both:+.3f}, {value + both:+.3f}]"
        kinds = f"[{low:+.3f}, {high:+.3f}], ± {of_subjects:.3f}"
        seeds = ", ".join(f"{one:+.3f}" for one in part["by_seed"].values)
        less = "" if net == "leaky" else f"{gain:+.1f} ± {error:.1f}"
        lines.append([name, net, *cells, less, effect, kinds, seeds])
    without = [f"{100 * result.attrs[f'commoner_{on}']:.1f}" for on in ("site", "honest")]
    lines.append([name, "the commoner label, without image", *without, "", "0", "", ""])
    if "best" in result.attrs:
        best = f"{100 * result.attrs['best']:.1f}"
        lines.append([name, "Bayes' rule on the true severity", best, best, "", "0", "", ""])
    return lines


def main(options: Options) -> None:
    """Run the study, print and save the tables and pictures."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("data", "source"))
    nets, outlines = [], []
    epochs = options.epochs
    for name in options.source:
        at = int(name == "hippocampus")
        sizes = options.train[at], options.test[at]
        parts = hippocampi(options.data, *sizes, 0) if at else phantoms(*sizes, 0)
        options.epochs = epochs * (5 if at else 1)
        study = Study(name, parts, options, folder / name)
        alone, result = study.outlines(), study.run()
        storage.save(alone, folder / f"outlines-{name}.nc")
        storage.save(result, folder / f"{name}.nc")
        outlines += outline_rows(name, alone)
        nets += net_rows(name, result)
        tables = [(OUTLINE_HEAD, outlines), (HEAD, nets)]
        text = "\n\n".join([*(storage.markdown_table(*one) for one in tables), KEY])
        storage.write_text(folder / "table.md", text + "\n")
        pictures.subjects(study).savefig(folder / f"subjects-{name}.png", dpi=DOTS)
        pictures.effects(study).savefig(folder / f"effects-{name}.png", dpi=DOTS)
    print(f"\n{text}\nWrote {folder / 'table.md'}")
