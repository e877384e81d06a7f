"""Names of what stands elsewhere. Old ones still work, and say once where it is now.

ppl_med.dims             imports ``ppl_med.axes`` and warns, by the table below
__getattr__ = renamed()  gives a package the old names of its own functions and classes
@renamed_argument()      gives a function the old name of a keyword
on_demand()              gives a package names that are imported when they are first asked for
"""

import ast
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Returned = TypeVar("Returned")

MODULES: dict[str, str] = {
    "ppl_med.atomic_file": "ppl_med.storage.atomic",
    "ppl_med.data.bccd": "ppl_med.data.readers.bccd",
    "ppl_med.data.depth_maps": "ppl_med.data.readers.depth_maps",
    "ppl_med.data.lidc_pickle": "ppl_med.data.readers.lidc_pickle",
    "ppl_med.data.make3d": "ppl_med.data.readers.make3d",
    "ppl_med.data.nyuv2": "ppl_med.data.readers.nyuv2",
    "ppl_med.data.pneumoniamnist": "ppl_med.data.readers.pneumoniamnist",
    "ppl_med.data.wbc_seg": "ppl_med.data.readers.wbc_seg",
    "ppl_med.data.camvid": "ppl_med.data.readers.camvid",
    "ppl_med.data.class_flips": "ppl_med.data.synthetic.class_flips",
    "ppl_med.data.confounders": "ppl_med.data.synthetic.confounders",
    "ppl_med.data.folders": "ppl_med.data.readers.folders",
    "ppl_med.data.hippocampus": "ppl_med.data.readers.hippocampus",
    "ppl_med.data.image_files": "ppl_med.data.readers.image_files",
    "ppl_med.data.lesion_generator": "ppl_med.data.synthetic.lesion_generator",
    "ppl_med.data.lidc": "ppl_med.data.readers.lidc",
    "ppl_med.data.malaria": "ppl_med.data.readers.malaria",
    "ppl_med.data.scene_generator": "ppl_med.data.synthetic.scene_generator",
    "ppl_med.dims": "ppl_med.axes",
    "ppl_med.likelihoods.laws": "ppl_med.likelihoods.distributions",
    "ppl_med.likelihoods.records": "ppl_med.likelihoods.stored",
    "ppl_med.inference.elbo": "ppl_med.programs.elbo",
    "ppl_med.priors": "ppl_med.weights",
    "ppl_med.reuse": "ppl_med.weights.call_cache",
    "ppl_med.explain.counterfactual": "ppl_med.explain.counterfactuals",
    "ppl_med.explain.localization": "ppl_med.explain.quality.localization",
    "ppl_med.explain.nearest_point": "ppl_med.explain.counterfactuals.tangent_search",
    "ppl_med.explain.posterior_predictive": "ppl_med.explain.counterfactuals.posterior_predictive",
    "ppl_med.explain.proximal": "ppl_med.explain.counterfactuals.proximal_gradient",
    "ppl_med.networks.alexnet": "ppl_med.networks.classifiers",
    "ppl_med.networks.compact": "ppl_med.networks.classifiers",
    "ppl_med.networks.lenet": "ppl_med.networks.classifiers",
    "ppl_med.explain.realism": "ppl_med.explain.counterfactuals.realism",
    "ppl_med.plots.attribution": "ppl_med.plots.attribution_maps",
    "ppl_med.plots.cases": "ppl_med.plots.case_cards",
    "ppl_med.plots.checks": "ppl_med.plots.inputs",
    "ppl_med.plots.class_colors": "ppl_med.plots.palette",
    "ppl_med.plots.curves": "ppl_med.plots.training_curves",
    "ppl_med.plots.data_size": "ppl_med.plots.uncertainty_kinds",
    "ppl_med.plots.depth_maps": "ppl_med.plots.depth",
    "ppl_med.plots.page": "ppl_med.plots.report.page",
    "ppl_med.plots.summary": "ppl_med.plots.report.summary",
    "ppl_med.plots.uncertainty": "ppl_med.plots.uncertainty_kinds",
    "ppl_med.analysis.attribution_maps": "ppl_med.analysis.tree.attributions",
    "ppl_med.analysis.binning": "ppl_med.analysis.statistics.binning",
    "ppl_med.analysis.decomposition": "ppl_med.analysis.scoring.brier_parts",
    "ppl_med.analysis.draw_ranks": "ppl_med.analysis.statistics.draw_ranks",
    "ppl_med.analysis.draw_scores": "ppl_med.analysis.scoring.draw_scores",
    "ppl_med.analysis.isotonic": "ppl_med.analysis.statistics.isotonic",
    "ppl_med.analysis.monte_carlo": "ppl_med.analysis.statistics.monte_carlo",
    "ppl_med.analysis.quantile_scores": "ppl_med.analysis.scoring.quantile_scores",
    "ppl_med.analysis.tree_blocks": "ppl_med.analysis.tree.blocks",
}


class _OldModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its old name."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of an old name, None for any other."""
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Let the old module answer with the new one's names."""
        old = module.__name__
        _warn(old, MODULES[old])
        new = importlib.import_module(MODULES[old])
        setattr(module, "__getattr__", lambda name: getattr(new, name))  # noqa: B010


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)


def renamed(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that knows old names.

    Args:
        package: ``__name__`` of the module.
        names: Its new names by the old ones; a new name may be a path to another module, such as
            ``"ppl_med.axes.dims"``.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        owner, _, attribute = names[name].rpartition(".")
        owner = owner or package
        _warn(f"{package}.{name}", f"{owner}.{attribute}")
        return getattr(importlib.import_module(owner), attribute)

    return __getattr__


def on_demand(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names are imported when they are needed.

    The package lists them once, in imports that only type checkers and editors run:

        if TYPE_CHECKING:
            from ppl_med.inference.svi import fit
        else:
            __getattr__, __dir__ = on_demand(__name__, __file__)

    ``import ppl_med.inference`` then costs next to nothing, and ``from ppl_med.inference import
    fit`` what ``fit`` needs. Modules of the package answer to their names as after an import.

    Args:
        package: ``__name__`` of the package.
        file: Its ``__file__``, with the imports under ``if TYPE_CHECKING:``.
    """
    owners = _listed(ast.parse(Path(file).read_text(encoding="utf-8")))

    def __getattr__(name: str) -> Any:
        if name in owners:
            found = getattr(importlib.import_module(owners[name]), name)
            setattr(sys.modules[package], name, found)
            return found
        module = f"{package}.{name}"
        if name.startswith("_") or importlib.util.find_spec(module) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(module)

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *owners})

    return __getattr__, __dir__


def _listed(tree: ast.Module) -> dict[str, str]:
    """The module of every name that is imported under ``if TYPE_CHECKING:``."""
    blocks = (node for node in tree.body if isinstance(node, ast.If))
    chosen = (node for b in blocks if ast.unparse(b.test) == "TYPE_CHECKING" for node in b.body)
    imports = (node for node in chosen if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def renamed_argument(
    old: str, new: str
) -> Callable[[Callable[P, Returned]], Callable[P, Returned]]:
    """Let a function take a keyword by its old name, and warn.

    Args:
        old: Old name of the keyword.
        new: Its name now, which the signature has.
    """

    def decorate(function: Callable[P, Returned]) -> Callable[P, Returned]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Returned:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{old} is the old name of {new}; give {new} alone.")
                warnings.warn(f"{old}= is now {new}=", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def install() -> None:
    """Let old module names be imported; called by ``import ppl_med``."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldModules())  # before a finder of an older installation
