"""From image files to what a run was trained on, as inference.json does it, or why it cannot.

A network that is given images prepared in another way than its training images answers all the
same, and wrongly. So a bundle repeats the preparation, or it is not written:

    transforms of MONAI in the description    as they are
    ``from_table`` of pictures                read, brought to size and scaled by the same code
    generators, MedMNIST                      as stored; another shape is refused
    everything else                           refused, or, where the user says so, left to whoever
                                              gives the images, which card and metadata then state
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppl_med.data.readers.headers import PICTURES
from ppl_med.runs.allowed_names import resolve
from ppl_med.runs.components import CALL, REFERENCE, is_component
from ppl_med.runs.run_folder import Run

# Their images are those of the files or of the generator, pixel by pixel.
AS_STORED = tuple(
    f"ppl_med.data.{name}"
    for name in (
        *("blood_smear", "depth_scenes", "lesions", "scenes"),
        *("load_medmnist", "load_pneumoniamnist"),
    )
)
TABLE = "ppl_med.data.from_table"


@dataclass(frozen=True)
class Preprocessing:
    """How a bundle brings images to its network.

    Attributes:
        transforms: In the words of MONAI's bundles.
        pattern: Which files they read, one or several.
        statement: What card and metadata say of it.
        is_complete: Whether nothing is left to whoever gives the images.
    """

    transforms: list[Any]
    pattern: str | list[str]
    statement: str
    is_complete: bool = True


def preprocessing_of(run: Run, as_given: bool = False) -> Preprocessing:
    """How a run's images came from their files.

    Args:
        run: The run, which knows the shape of its images.
        as_given: Leave to whoever gives the images what the bundle cannot repeat.

    Raises:
        ValueError: If it cannot be repeated, and ``as_given`` is False.
    """
    data = run.config.get("data", {})
    for split in ("test", "validation", "train"):
        found = _transform_of(data.get(split))
        if found is not None:
            said = "Images are read and prepared by the transforms of MONAI that the run was "
            said += "described with, in `configs/inference.json`."
            return Preprocessing([_in_monais_words(found)], "*.nii.gz", said)
    ready = run.loc is None or run.scale is None
    if ready and not as_given:
        raise ValueError(
            "how the run's images were brought to one scale is not known: its data come ready from "
            "a loader without transforms of MONAI; save it with loc and scale, or export it "
            "as_given (--as-given)"
        )
    section = data.get("train") if is_component(data.get("train")) else data.get("source")
    name = str(section[CALL]) if is_component(section) else ""
    shape = run.example["image"]["shape"][1:]
    is_picture = run.unit == "uint8" and len(shape) == 3 and shape[0] in (1, 3)
    read: dict[str, Any] = {
        "_target_": "ppl_med.runs.ReadImage",
        "shape": shape,
        "unit": run.unit,
    }
    text = f"{' x '.join(map(str, shape))} (channel, {'depth, ' * (len(shape) == 4)}row, col)"
    levels = "whole grey levels, 0 to 255" if run.unit == "uint8" else "numbers"
    known = True
    if name == TABLE and is_picture:
        read["resize"] = section.get("resize", "fit") if section.get("size") else None
        said = f"Pictures are brought to {text} by the code that read the training images."
        if read["resize"] is None:
            said = f"Pictures must be {text}, as the training images were; others are refused."
    elif name in AS_STORED and not ready:
        said = f"Images must be {text}, {levels}, as the training images were; others are refused."
    else:
        origin = f"`{name}`" if name else "code that the run does not know"
        if not as_given:
            raise ValueError(_refusal(name))
        known = False
        said = (
            f"**The bundle does not prepare images in full.** Those of the run came from {origin}, "
            "whose preparation (size, spacing, axes, window, scale of the grey levels) is not "
            f"repeated here: give images prepared in the same way, {text}, {levels}. Images that "
            "were prepared otherwise are answered wrongly, without a sign."
        )
    transforms = [read, *_normalizing(run)]
    pattern = [f"*{ending}" for ending in PICTURES] if is_picture else "*.npy"
    return Preprocessing(transforms, pattern, said, known)


def _refusal(name: str) -> str:
    what = (
        f"they come from {name}, which prepares them (size, spacing, axes, window, scale)"
        if name
        else "the run's description says nothing of their data"
    )
    return (
        f"how the run's images came from their files cannot be repeated in a bundle: {what}, and a "
        "bundle that left this out would answer wrongly without a sign; describe the data by a "
        "data set of MONAI with its transforms, or export it as_given (--as-given) and give the "
        "bundle images that are prepared in the same way"
    )


def _normalizing(run: Run) -> list[dict[str, Any]]:
    """Steps after the pixels are read."""
    steps: list[dict[str, Any]] = []
    if run.unit == "uint8":
        span = {"a_min": 0.0, "a_max": 255.0, "b_min": 0.0, "b_max": 1.0}
        steps.append({"_target_": "ScaleIntensityRanged", "keys": ["image"], **span})
    if run.loc is not None and run.scale is not None:
        channels = run.example["image"]["shape"][1]
        loc, scale = (
            numbers * channels if len(numbers) == 1 else numbers for numbers in (run.loc, run.scale)
        )
        by = {"subtrahend": loc, "divisor": scale, "channel_wise": True}
        steps.append({"_target_": "NormalizeIntensityd", "keys": ["image"], **by})
    return steps


def _transform_of(section: Any) -> Any:
    """The transforms of a MONAI data set, inside a loader or not."""
    if not is_component(section):
        return None
    inner = section.get("dataset", section)
    found = inner.get("transform") if isinstance(inner, Mapping) else None
    if not (isinstance(found, Mapping) and is_component(found)):
        return None
    return found if str(found[CALL]).startswith("monai.transforms.") else None


def _in_monais_words(part: Any) -> Any:
    """``name:`` as ``_target_``; keys that new images lack, such as masks, may be missing."""
    if isinstance(part, list):
        return [_in_monais_words(one) for one in part]
    if not isinstance(part, Mapping):
        return part
    rest = {key: _in_monais_words(one) for key, one in part.items() if key not in (CALL, REFERENCE)}
    name = part.get(CALL, part.get(REFERENCE))
    if name is None:
        return rest
    if REFERENCE in part:
        return {"_target_": name, "_mode_": "partial", **rest}
    if "allow_missing_keys" in inspect.signature(resolve(name)).parameters:
        rest["allow_missing_keys"] = True
    return {"_target_": name, **rest}
