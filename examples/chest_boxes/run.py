"""The study from end to end."""

import json
import time

from chest_boxes import priors, real_films
from chest_boxes.options import Options
from chest_boxes.pictures import draw_pairs, draw_variances, show, tell
from chest_boxes.scores import collect
from chest_boxes.study import SETTINGS, Study
from chest_boxes.tables import tables
from ppl_med.storage import check_same, open_run, write_text


def main(options: Options) -> None:
    """Train, join, score, draw."""
    started = time.perf_counter()
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.repeat, options.members, options.films, options.pairs = 1, 2, 12, 4
    check_same(options, folder, free=("data", "source", "repeat"))
    study = Study(options, folder)
    if options.source == "cxr_lesions":
        tree, films = real_films.fine_tuned(study)
        print(real_films.describe(tree))
        case = str(tree["objects"]["case"].values[0])
        show(tree, films, case, least=0.3).savefig(folder / "real.png", dpi=60)
        print(f"{time.perf_counter() - started:.0f} s")
        print(f"Wrote {folder / 'real.png'}")
        return
    for seed in options.seeds:
        for setting in SETTINGS:
            study.posterior(setting, seed, "films")
    found = collect(study)
    write_text(folder / "tables.md", tables(found) + "\n")
    found["priors"] = priors.compare(study)
    write_text(folder / "scores.json", json.dumps(found, indent=1))
    text = tables(found)
    write_text(folder / "tables.md", text + "\n")
    print(text)
    print(tell(study))
    tree, case = study.shown()
    show(tree, study.films("films"), case).savefig(folder / "objects.png", dpi=60)
    draw_pairs(found["pairs"]).savefig(folder / "pairs.png", dpi=80)
    draw_variances(found["variances"]).savefig(folder / "variances.png", dpi=80)
    priors.draw(found["priors"]).savefig(folder / "prior.png", dpi=80)
    print(f"{time.perf_counter() - started:.0f} s")
    print(f"Wrote {folder / 'tables.md'} and {folder / 'objects.png'}")
