"""The tables and the report."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ppl_med import storage
from ppl_med.plots import theme
from ppl_med.plots.report import Section, paragraph, picture, write_report
from ppl_med.plots.report import table as html_table
from ppl_med.plots.unlike_cases import pvalue_steps, severity_curves, unlike_scores
from unknown_inputs.figures import Z, verdicts
from unknown_inputs.severity import FIGURES as BY_SEVERITY
from unknown_inputs.study import BASELINES, Study

SHOWN = ("mutual_information", "novelty")


def cell(value: float, error: float) -> str:
    """A figure and the half width of its 95 % interval."""
    if not np.isfinite(value):
        return ""
    return f"{value:.2f} ± {Z * error:.2f}" if np.isfinite(error) else f"{value:.2f}"


def scores_table(result: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """AUROC of every guide and score for every pair of one source, and of finding errors."""
    pairs = [str(name) for name in result["pair"].values]
    head = ["guide", "score", *pairs, "wrong predictions"]
    lines = []
    for guide, score in itertools.product(result["guide"].values, result["score"].values):
        part = result.sel(guide=guide, score=score)
        cells = [cell(float(part["auroc"].sel(pair=pair)), float(part["auroc_se"].sel(pair=pair)))
                 for pair in pairs]  # fmt: skip
        if any(cells):
            last = cell(float(part["failure"]), float(part["failure_se"]))
            lines.append([str(guide).replace("_", "-"), str(score).replace("_", " "), *cells, last])
    return head, lines


def default_table(results: dict[str, xr.Dataset]) -> tuple[list[str], list[list[str]]]:
    """The default `ood.novelty` and the mutual information of every pair, by guide."""
    guides = list(dict.fromkeys(str(g) for one in results.values() for g in one["guide"].values))
    kept = [guide for guide in guides if guide not in BASELINES]
    head = ["source", "set", "kind", "score", *(name.replace("_", "-") for name in kept),
            "untrained net", "grey levels alone"]  # fmt: skip
    lines = []
    for source, result in results.items():
        for pair, score in itertools.product(result["pair"].values, SHOWN):
            cells = []
            for guide in (*kept, *BASELINES):
                name = "mahalanobis" if guide == "grey_levels" else score
                shown = guide in result["guide"].values and (score == "novelty" or guide in kept)
                part = result.sel(guide=guide, pair=pair, score=name) if shown else None
                cells.append(
                    "" if part is None else cell(float(part["auroc"]), float(part["auroc_se"]))
                )
            kind = str(result["kind"].sel(pair=pair).values)
            lines.append([source, str(pair), kind, score.replace("_", " "), *cells])
    return head, lines  # fmt: skip


def alarms_table(results: dict[str, xr.Dataset]) -> tuple[list[str], list[list[str]]]:
    """Shares of p-values of `ood.novelty` at or below .05: false alarms, and what is found."""
    head = ["source", "set", "guide", "false alarms %", "found %"]
    lines = []
    for source, result in results.items():
        for pair, guide in itertools.product(result["pair"].values, result["guide"].values):
            part = result.sel(pair=pair, guide=guide)
            if np.isfinite(part["alarms"]):
                shares = [f"{100 * float(part[name]):.0f}" for name in ("alarms", "found")]
                lines.append([source, str(pair), str(guide).replace("_", "-"), *shares])
    return head, lines


def verdict(results: dict[str, xr.Dataset], medical: set[str]) -> list[str]:
    """On how many pairs the default is the best, or within its interval of the best, by guide."""
    lines = []
    found = [
        one for source, result in results.items() if source in medical for one in verdicts(result)
    ]
    for guide in dict.fromkeys(one["guide"] for one in found):
        own = [one for one in found if one["guide"] == guide]
        good = sum(one["holds"] for one in own)
        lost = [f"{one['pair']} ({one['novelty']:.2f}, {one['best']} {one['value']:.2f})"
                for one in own if not one["holds"]]  # fmt: skip
        text = f"{guide.replace('_', '-')}: novelty is best or within its interval of the best on "
        text += f"{good} of {len(own)} medical pairs"
        lines.append(text + (f"; not on {', '.join(lost)}" if lost else ""))
    return lines


def write(
    folder: Path, studies: dict[str, Study], results: dict[str, xr.Dataset],
    severities: dict[str, xr.Dataset], guide: str, seed: int, *, smoke: bool,
) -> str:  # fmt: skip
    """Write table.md and report.html; the text of the former."""
    medical = {name for name, one in studies.items() if one.source.medical}
    lines = verdict(results, medical)
    parts = [*(f"- {line}" for line in lines), "", storage.markdown_table(*default_table(results))]
    sections = [
        Section("default", "Is the default enough?", "".join(paragraph(line) for line in lines)
                + html_table(*default_table(results))),
        Section("toy", "Why confidence is not enough", picture(toy(), "A toy of two classes")
                + paragraph("Two classes on a line and cases far off it: the classifier is surest "
                            "where it has never been.")),
    ]  # fmt: skip
    for name, result in results.items():
        parts += [
            "",
            f"### {name.replace('_', ' ')}",
            "",
            storage.markdown_table(*scores_table(result)),
        ]
        body = html_table(*scores_table(result))
        if guide in result["guide"].values:
            found = studies[name].run(guide, seed)
            for score in SHOWN:
                sets = {title: _one(one, score) for title, one in found.items() if title != "test"}
                body += picture(
                    unlike_scores(_one(found["test"], score), sets), f"{score} of {name}"
                )
            body += picture(
                pvalue_steps(_one(found["test"], "novelty"),
                             {t: _one(f, "novelty") for t, f in found.items() if t != "test"}),
                f"p-values of {name}",
            )  # fmt: skip
            body += picture(found_and_missed(studies[name], found), f"Cases of {name}")
        sections.append(Section(name.replace("_", "-"), name.replace("_", " ").capitalize(), body))
    parts += ["", "### False alarms", "", storage.markdown_table(*alarms_table(results))]
    for name, one in severities.items():
        figure = severity_curves(one, list(BY_SEVERITY))
        body = picture(figure, "Figures by severity")
        sections.append(Section(f"worse-{name}", f"{name.capitalize()} made worse", body))
        figure.savefig(folder / f"severity-{name}.png", dpi=110)
    text = "\n".join(parts)
    storage.write_text(folder / "table.md", text + "\n")
    first = next(iter(studies.values()))
    place = first.path(guide, seed)
    if not (place / "posterior-test.nc").exists():
        pair = first.trained(guide, seed)
        storage.save(
            first.predicted(*pair, guide, seed, first.sets["test"]), place / "posterior-test.nc"
        )
    write_report(
        folder / "report.html",
        title="Does it know what it has never seen?",
        tree=storage.load(place / "posterior-test.nc"),  # type: ignore[arg-type]
        history=storage.load(place / "history.nc"),  # type: ignore[arg-type]
        sections=sections,
        notes=(f"Curves and uncertainty below are those of {guide}, {first.name}, seed {seed}.",),
        smoke=smoke,
    )
    return text


def _one(found: xr.Dataset, name: str) -> xr.Dataset:
    """Scores and p-values of one score (case)."""
    part = found.sel(score=name).drop_vars("score")
    values = {"score": part["value"], "pvalue": part["pvalue"]}
    return xr.Dataset(values, attrs={"score": name.replace("_", " ")})


def found_and_missed(study: Study, found: dict[str, xr.Dataset], across: int = 5) -> Figure:
    """Pictures from elsewhere with the smallest and with the largest p-value, set by set."""
    titles = [title for title in found if title != "test"]
    figure = theme.new_figure(1.25 * 2 * across + 1.2, 1.35 * len(titles) + 0.9)
    axes = figure.subplots(len(titles), 2 * across, squeeze=False)
    for row, title in enumerate(titles):
        part = found[title].sel(score="novelty")
        order = np.argsort(part["pvalue"].values + 1e-9 * -part["value"].values, kind="stable")
        chosen = [*order[:across], *order[-across:]]
        images = study.sets[title]["image"]
        for column, at in enumerate(chosen):
            ax = axes[row, column]
            ax.imshow(_picture(images[at]), cmap="gray")
            ax.set(xticks=[], yticks=[])
            theme.remark(ax, f"p = {float(part['pvalue'].values[at]):.2g}", fontsize=7)
        axes[row, 0].set_ylabel(theme.plain(title, 16), fontsize=8)
    theme.heading(figure, "From elsewhere: the most novel (left half) and the least (right half)")
    return figure


def _picture(image: np.ndarray) -> np.ndarray:
    """A case as something that can be shown: the middle slice, colours last."""
    if image.ndim == 4:
        image = image[:, image.shape[1] // 2]
    return image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)


def toy_cases(seed: int = 0) -> dict[str, Any]:
    """Two classes beside each other and cases far away on the sure side of one of them."""
    random = np.random.default_rng(seed)
    label = np.repeat([0, 1], 200)
    known = random.normal(size=(400, 2)) * (1.0, 0.4) + np.where(label, 1.5, -1.5)[:, None] * (1, 0)
    far = random.normal(size=(200, 2)) * (0.6, 0.4) + (9.0, 0.0)
    net = LogisticRegression().fit(known, label)
    scatter = EmpiricalCovariance(assume_centered=True)
    means = np.stack([known[label == kind].mean(0) for kind in (0, 1)])
    scatter.fit(known - means[label])
    scores = {}
    for name, cases in (("known", known), ("far", far)):
        distance = np.min([scatter.mahalanobis(cases - mean) for mean in means], axis=0)
        scores[name] = {"mcp": 1 - net.predict_proba(cases).max(1), "mahalanobis": distance}
    event = np.repeat([0, 1], [len(known), len(far)])
    auroc = {
        name: roc_auc_score(event, np.concatenate([scores["known"][name], scores["far"][name]]))
        for name in ("mcp", "mahalanobis")
    }
    return {"known": known, "far": far, "label": label, "net": net, "auroc": auroc}


def toy() -> Figure:
    """The toy: where the classifier is sure, and where the cases lie."""
    cases = toy_cases()
    figure, ax = theme.new_panel(6.4, 3.2, grid=None)
    x, y = np.meshgrid(np.linspace(-5, 12, 120), np.linspace(-3, 3, 60))
    sure = cases["net"].predict_proba(np.stack([x.ravel(), y.ravel()], 1)).max(1).reshape(x.shape)
    shade = ax.contourf(x, y, sure, levels=np.linspace(0.5, 1, 11), cmap="Greys", alpha=0.5)
    figure.colorbar(shade, ax=ax, label="Largest probability", ticks=[0.5, 0.75, 1.0])
    for kind, color in ((0, theme.SERIES[2]), (1, theme.HIT)):
        part = cases["known"][cases["label"] == kind]
        ax.scatter(*part.T, s=6, color=color, label=f"class {kind}")
    ax.scatter(*cases["far"].T, s=6, color=theme.MISS, marker="x", label="never seen")
    ax.set(xlabel="First feature", ylabel="Second feature")
    auroc = cases["auroc"]
    theme.remark(ax, f"AUROC: 1 - max p {auroc['mcp']:.2f}, Mahalanobis {auroc['mahalanobis']:.2f}")
    theme.legend(figure, ncols=3)
    theme.heading(figure, "Surest where it has never been")
    return figure
