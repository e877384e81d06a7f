"""The study from end to end."""

import xarray as xr

from hippocampus.options import Options
from hippocampus.pages import HEAD, rows, show, tabulate
from hippocampus.programs import SIZE, build, draws_of
from hippocampus.volumes import constant, dice, measure, outlined_volumes, regressed, widened
from ppl_med import storage
from ppl_med.data import Batches, load_hippocampus
from ppl_med.data.readers.hippocampus import CLASS_NAMES
from ppl_med.inference import fit, predict
from ppl_med.storage import check_same, open_run


def study(
    options: Options, trees: dict[str, xr.DataTree], outlined: xr.DataArray
) -> dict[str, dict[str, xr.Dataset]]:
    """Intervals by the name of their cases and by kind.

    Conformal intervals and the regression are learnt on val, and on half of it where the other half
    is to be judged; the constant one on the outlines of the training cases.
    """
    found = {split: measure(tree, options.seed) for split, tree in trees.items()}
    val = found["val"]["coherent"]
    for by_kind in found.values():
        by_kind["constant"] = constant(outlined, by_kind["coherent"])
    if options.split == "test":
        known, judged = val, found["test"]
    else:
        half = {"case": slice(0, None, 2)}, {"case": slice(1, None, 2)}
        known = val.isel(half[0])
        judged = {kind: sizes.isel(half[1]) for kind, sizes in found["val"].items()}
        found["half of val"] = judged
    judged["conformal"] = widened(known, judged["coherent"], options.guide)
    judged["regression"] = regressed(known, judged["coherent"])
    return found


def main(options: Options) -> None:
    """Train, predict, measure, report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("data", "split"))
    splits = load_hippocampus(options.data, size=SIZE)
    if options.split not in splits:
        raise FileNotFoundError(f"--split {options.split}: the folder has {sorted(splits)}")
    model, guide = build(options)
    train = Batches(
        splits["train"], batch_size=options.batch_size, shuffle=True, drop_last=True,
        seed=options.seed,
    )  # fmt: skip
    if options.smoke:
        train = train.first(4)
    history = fit(
        model, guide, train, epochs=max(1, round(options.steps / len(train))),
        learning_rate=options.rate, schedule="cosine", precision=options.precision,
        device=options.device, seed=options.seed, checkpoint=folder / "checkpoint.pt",
        resume=options.resume,
    )  # fmt: skip
    storage.save(history, folder / "history.nc")
    trees = {
        split: predict(
            model, guide, Batches(splits[split], batch_size=5), draws=draws_of(options),
            seed=options.seed, device=options.device, window=options.window,
            store=folder / f"posterior-{split}.zarr", resume=options.resume,
        )
        for split in dict.fromkeys(("val", options.split))
    }  # fmt: skip
    outlined = outlined_volumes(
        splits["train"]["mask"], splits["train"]["spacing"], CLASS_NAMES[1:]
    )
    found = study(options, trees, outlined)
    result = tabulate(found, {split: dice(tree) for split, tree in trees.items()})
    storage.save(result, folder / "table.nc")
    text = storage.markdown_table(list(HEAD), rows(result))
    storage.write_text(folder / "table.md", text + "\n")
    print(text)
    images = splits[options.split]["image"]
    show(options, folder, trees[options.split], images, history, found, result)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")
