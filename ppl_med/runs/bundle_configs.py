"""The two JSON files that make a folder a MONAI Bundle, from a run."""

import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from ppl_med.checks import reject
from ppl_med.runs.allowed_names import resolve
from ppl_med.runs.components import CALL, REFERENCE, is_component
from ppl_med.runs.model_card import title_of
from ppl_med.runs.run_folder import Run

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
_PACKAGES = ("ppl-med", "pyro-ppl", "xarray", "safetensors", "nibabel")


def metadata(run: Run, figures: Mapping[str, tuple[float, float, float]]) -> dict[str, Any]:
    """What MONAI's schema asks for.

    Args:
        run: The run.
        figures: Figures of merit as (value, lower, upper), by name.

    Raises:
        ValueError: If the run does not know the shape of its images.
    """
    card, images = run.config.get("card", {}), run.example.get("image")
    if not images:
        reject("run", "one that knows its images' shape; save it with example=a batch", run.folder)
    channels, *space = images["shape"][1:]
    is_masks = "mask" in run.example
    task = "segmentation" if is_masks else "classification" if run.classes else "regression"
    own = str(card.get("version", "0.1.0"))
    outputs = len(run.classes) or 1
    names = run.classes or ("value",)
    return {
        "schema": SCHEMA,
        "version": own,
        "changelog": {own: f"exported by ppl_med {version_of('ppl-med')}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version_of(name) for name in _PACKAGES},
        "optional_packages_version": {},
        "supported_apps": {},
        "name": title_of(run),
        "task": f"{task} with uncertainty",
        "description": f"{title_of(run)}. A posterior over networks: every prediction has a mean "
        "and a spread. See docs/README.md.",
        "intended_use": card.get("intended_use") or "not stated",
        "authors": _text(card.get("authors")),
        "copyright": _text(card.get("copyright")),
        "data_source": _text(card.get("data")),
        "data_type": "image files",
        "references": list(card.get("references") or []),
        "eval_metrics": {
            name: {"value": value, "lower_95": lower, "upper_95": upper}
            for name, (value, lower, upper) in figures.items()
            if value == value and lower == lower
        },
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": card.get("modality") or "n/a",
                    "num_channels": channels,
                    "spatial_shape": space,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(k): f"channel {k}" for k in range(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image" if is_masks else "probabilities",
                    "format": "labels" if is_masks else "classes",
                    "num_channels": outputs,
                    "spatial_shape": space if is_masks else [1],
                    "dtype": "float32",
                    "value_range": [0, 1] if run.classes else [],
                    "is_patch_data": False,
                    "channel_def": {str(k): name for k, name in enumerate(names)},
                }
            },
        },
    }


def inference_config(run: Run, allow: Iterable[str]) -> dict[str, Any]:
    """The program that MONAI's runner executes."""
    transforms, pattern = _preprocessing(run)
    settings = run.config.get("predict", {})
    window = {n: settings[n] for n in ("window", "overlap", "blend") if n in settings}
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "pattern": pattern,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "draws": settings.get("draws", 32),
        "seed": run.config["seed"],
        "batch_size": 1,
        "allow": list(allow),
        "posterior": {
            "_target_": "ppl_med.runs.load_bundle",
            "folder": "@bundle_root",
            "allow": "@allow",
        },
        "network_def": "$@posterior.model",
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "dataset": {
            "_target_": "Dataset",
            "data": {
                "_target_": "ppl_med.runs.find_images",
                "folder": "@dataset_dir",
                "pattern": "@pattern",
            },
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": "SimpleInferer"},
        "evaluator": {
            "_target_": "ppl_med.runs.BundlePredictor",
            "posterior": "@posterior",
            "dataset": "@dataset",
            "output_dir": "@output_dir",
            "draws": "@draws",
            "seed": "@seed",
            "batch_size": "@batch_size",
            "device": "@device",
            **window,
        },
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(run: Run) -> tuple[list[Any], str]:
    """Transforms in MONAI's words, and a pattern of the files they read."""
    data = run.config.get("data", {})
    for split in ("test", "validation", "train"):
        found = _transform_of(data.get(split))
        if found is not None:
            return [_in_monais_words(found)], "*.nii.gz"
    if run.loc is None or run.scale is None:
        raise ValueError(
            "how the run's images were brought to one scale is not known: its data come ready from "
            "a loader without transforms of MONAI; save it with loc and scale"
        )
    volumes = len(run.example["image"]["shape"]) == 5
    load: dict[str, Any] = {"_target_": "LoadImaged", "keys": ["image"]}
    load |= {"reader": "NumpyReader"} if volumes else {
        "reader": "PILReader",
        "reverse_indexing": False,
    }  # fmt: skip
    first = {"channel_dim": 0} if volumes else {}
    transforms = [load, {"_target_": "EnsureChannelFirstd", "keys": ["image"], **first}]
    if run.unit == "uint8":
        span = {"a_min": 0.0, "a_max": 255.0, "b_min": 0.0, "b_max": 1.0}
        transforms.append({"_target_": "ScaleIntensityRanged", "keys": ["image"], **span})
    transforms.append(
        {
            "_target_": "NormalizeIntensityd",
            "keys": ["image"],
            "subtrahend": run.loc,
            "divisor": run.scale,
            "channel_wise": True,
        }
    )
    return transforms, "*.npy" if volumes else "*.png"


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


def version_of(package: str) -> str:
    """The version of a package that is installed, or imported from its source."""
    if package == "ppl-med":
        import ppl_med

        return ppl_med.__version__
    try:
        return version(package)
    except ImportError:
        return "not installed"


def _text(value: Any) -> str:
    found = ", ".join(value) if isinstance(value, list) else value
    return str(found or "not stated")
