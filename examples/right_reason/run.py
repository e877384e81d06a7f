"""The study from end to end."""

import warnings

import xarray as xr
from confounded.planted import Planted
from confounded.source import Source

from ppl_med import storage
from ppl_med.plots.report import Section, paragraph, table, write_report
from ppl_med.storage import check_same, open_run
from right_reason.options import Options
from right_reason.pages import planted_sections, source_sections
from right_reason.tables import (
    HEAD,
    KEY,
    MASS_HEAD,
    SOURCE_HEAD,
    mass_rows,
    net_rows,
    source_rows,
    source_words,
)


def main(options: Options) -> None:
    """Run the studies, print and save the tables, write the report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("data", "planted", "source", "part"))
    if not (options.planted or options.source):
        raise ValueError("planted is empty and source is off; there is nothing to do")
    text, sections, trees = [], [], []
    with warnings.catch_warnings():
        # A coarse path misses a little of the total; shares of relevance need no more.
        warnings.filterwarnings("ignore", "integrated gradients: Σ attribution misses")
        found = []
        for name in options.planted:
            (folder / name).mkdir(exist_ok=True)
            study = Planted(name, options, folder / name)
            result = study.run()
            found.append(result)
            trees.append((study.tree, study.images_shown))
            sections += planted_sections(study, result)
            storage.save(xr.concat(found, "data"), folder / "table.nc")
            text += [
                storage.markdown_table(HEAD, net_rows(result)),
                storage.markdown_table(MASS_HEAD, mass_rows(result)),
            ]
            print("\n" + "\n\n".join(text[-2:]) + "\n")
        if found:
            text.append(KEY)
        if options.source:
            (folder / "cxr_nih").mkdir(exist_ok=True)
            source = Source(options, folder / "cxr_nih")
            result = source.run()
            storage.save(result, folder / "source.nc")
            storage.save(source.clusters, folder / "clusters.nc")
            sections += source_sections(source, result)
            trees.append((source.tree, None))
            text += [storage.markdown_table(SOURCE_HEAD, source_rows(result)), source_words(result)]
    storage.write_text(folder / "table.md", "\n\n".join(text) + "\n")
    nets = [line for one in found for line in net_rows(one)]
    first = Section("table", "Nets", table(HEAD, nets) + paragraph(KEY))
    tree, images = trees[0]
    write_report(
        folder / "report.html",
        title="Right for the right reason?",
        smoke=options.smoke,
        tree=tree,
        images=images,
        sections=[*([first] if found else []), *sections],
        notes=(
            f"Compared on the {options.part} part. A tag was planted on purpose, in class 0 with "
            f"probability {options.probability[0]:g} and in class 1 with "
            f"{options.probability[1]:g}; the two sources of cxr_nih are as they are.",
        ),
    )
    print("\n" + "\n\n".join(text))
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")
