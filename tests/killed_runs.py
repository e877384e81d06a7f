"""Runs of fit, sample and predict in a process of their own that is killed at a seeded moment."""

import contextlib
import io
import os
import signal
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ppl_med.data import Batches, flips_and_turns
from ppl_med.inference import (
    HMC,
    NUTS,
    SGHMC,
    SGLD,
    SWAG,
    ConditionalNormal,
    Ensemble,
    Laplace,
    MeanFieldNormal,
    PointEstimate,
    fit,
    predict,
    sample,
    save,
)
from ppl_med.inference.guides.kept_draws import KeptChains
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.inference.sampling.contract import Kernel
from ppl_med.inference.sampling.sampler import Sampler
from ppl_med.inference.training.trainer import Trainer
from ppl_med.models import BayesianClassifier, DUQClassifier, LatentClassifier
from ppl_med.networks import GaussianEncoder

CASES, BATCH_SIZE, EPOCHS = 44, 8, 3
STEPS = EPOCHS * -(-CASES // BATCH_SIZE)


class Moment:
    """When a run is killed: some milliseconds after its n-th call of a method.

    Args:
        call: Which call, from 1.
        delay: Seconds after the call began.
    """

    def __init__(self, call: int, delay: float) -> None:
        self.call, self.delay = call, delay

    def arm(self, owner: Any, method: str) -> None:
        """Have this process killed when the moment comes."""
        original, calls = getattr(owner, method), 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call:
                threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return original(*args, **kwargs)

        setattr(owner, method, counted)


def die_in_write(call: int) -> None:
    """Have this process killed in the middle of writing its n-th checkpoint."""
    original, calls = torch.save, 0

    def half(content: Any, file: Any) -> None:
        nonlocal calls
        calls += 1
        if calls < call:
            original(content, file)
            return
        whole = io.BytesIO()
        original(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(torch, "save", half)  # noqa: B010


def die_in_zarr_write(call: int) -> None:
    """Have this process killed in a store's n-th write, before the temporary file is renamed."""
    original, calls = Path.replace, 0

    def counted(self: Path, target: Any) -> Path:
        nonlocal calls
        calls += ".zarr" in str(self) and self.suffix == ".partial"
        if calls >= call:  # Zarr's threads may count past it
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, target)

    setattr(Path, "replace", counted)  # noqa: B010


def differences(first: Any, second: Any, path: str = "", *, tolerance: float = 0) -> list[str]:
    """Paths at which two nested states differ in any bit, or numbers by more than a tolerance."""
    if isinstance(first, dict):
        keys = list(dict.fromkeys([*first, *second]))
        missing = [f"{path}/{key}" for key in keys if key not in first or key not in second]
        both = [(first[k], second[k], f"{path}/{k}") for k in keys if k in first and k in second]
        return missing + [d for pair in both for d in differences(*pair, tolerance=tolerance)]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [f"{path}: {len(first)} and {len(second)} entries"]
        found = [(a, b, f"{path}/{i}") for i, (a, b) in enumerate(zip(first, second, strict=True))]
        return [d for pair in found for d in differences(*pair, tolerance=tolerance)]
    if isinstance(first, torch.Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
        if tolerance and not same and first.shape == second.shape:
            same = float((first.double() - second.double()).abs().max()) <= tolerance
    else:
        same = first == second
    return [] if same else [path]


class Noisy(Dataset):
    """Cases that NumPy's and torch's global generators disturb whenever they are read."""

    def __init__(self, image: torch.Tensor, label: torch.Tensor) -> None:
        self.image, self.label = image, label

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # The global generator on purpose: it is what the augmentations of many users draw from.
        noise = np.random.normal() + torch.randn(()).item()  # noqa: NPY002
        return {"image": self.image[index] + 0.1 * noise, "label": self.label[index]}


def cases(num_cases: int = CASES) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, num_cases)
    image = rng.normal(size=(num_cases, 1, 8, 8)) + label[:, None, None, None]
    ids = [f"case-{'long-' * (index // 20)}{index}" for index in range(num_cases)]
    age = rng.normal(50, 10, num_cases)
    return {"image": image.astype("float32"), "label": label, "id": ids, "age": age}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


def classifier() -> BayesianClassifier:
    torch.manual_seed(0)
    return BayesianClassifier(network(), ["no", "yes"])


def _loader(**options: Any) -> DataLoader:
    arrays = cases()
    data = Noisy(torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["label"]))
    return DataLoader(data, batch_size=BATCH_SIZE, shuffle=True, **options)


def _batches(**options: Any) -> Batches:
    return Batches(cases(), batch_size=BATCH_SIZE, shuffle=True, **options)


def batches_augmented_validated() -> dict[str, Any]:
    model = classifier()
    held_out = Batches(cases(10), batch_size=4)
    return {
        "model": model,
        "guide": MeanFieldNormal(model),
        "batches": _batches(augment=flips_and_turns),
        "validation": held_out,
        "schedule": "cosine",
        "kl_weight": lambda done: done,
    }


def shuffled_loader() -> dict[str, Any]:
    model = classifier()
    return {
        "model": model,
        "guide": MeanFieldNormal(model),
        "batches": _loader(),
        "validation": _loader(),
    }


def loader_with_generator() -> dict[str, Any]:
    model = classifier()
    loader = _loader(generator=torch.Generator().manual_seed(7))
    return {"model": model, "guide": MeanFieldNormal(model), "batches": loader}


def ensemble() -> dict[str, Any]:
    model = classifier()
    return {
        "model": model,
        "guide": Ensemble(model, PointEstimate, members=2),
        "batches": _loader(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    }


def latent_code() -> dict[str, Any]:
    torch.manual_seed(0)
    model = LatentClassifier(1, ["no", "yes"], width=4)
    guide = ConditionalNormal(GaussianEncoder(1, 2, 4, num_classes=2))
    return {"model": model, "guide": guide, "batches": _batches()}


def centroids() -> dict[str, Any]:
    """Buffers that follow every step, under draws of their own."""
    torch.manual_seed(0)
    model = DUQClassifier(network(), ["no", "yes"], 2, batch_size=BATCH_SIZE, momentum=0.9)
    return {"model": model, "guide": MeanFieldNormal(model), "batches": _batches()}


def iterates() -> dict[str, Any]:
    """Moments that follow every step."""
    model = classifier()
    guide = SWAG(model, start=0.2, iterates=9, rank=3)
    return {"model": model, "guide": guide, "batches": _batches()}


def curvature() -> dict[str, Any]:
    """A pass over the batches after training, in an order of its own."""
    model = classifier()
    guide = Ensemble(model, partial(Laplace, structure="diag"), members=2)
    return {"model": model, "guide": guide, "batches": _loader()}


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        batches_augmented_validated,
        shuffled_loader,
        loader_with_generator,
        ensemble,
        latent_code,
        centroids,
        iterates,
        curvature,
    )
}


def train(scenario: str, folder: Path, moment: Moment | None, write: int | None = None) -> None:
    torch.set_num_threads(1)
    if moment is not None:
        moment.arm(Trainer, "_step")
    if write is not None:
        die_in_write(write)
    history = fit(
        **SCENARIOS[scenario](),
        epochs=EPOCHS,
        checkpoint=folder / "run.pt",
        checkpoint_every=0,
        resume=True,
        device="cpu",
        progress=False,
    )
    history.to_netcdf(folder / "history.nc")


def train_step_by_step(scenario: str, folder: Path) -> None:
    step, steps = Trainer._step, 0

    def one_step(self: Trainer, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps > 1:
            raise KeyboardInterrupt
        step(self, *arguments)

    setattr(Trainer, "_step", one_step)  # noqa: B010
    starts = 0
    while not (folder / "history.nc").exists():
        steps, starts = 0, starts + 1
        with contextlib.suppress(KeyboardInterrupt):
            train(scenario, folder, None)
    assert starts % STEPS == 0


def draw(kind: str, store: Path, moment: Moment | None, write: int | None = None) -> None:
    from ppl_med.inference import predictive

    predictive.CHUNK_CASES = 2 * BATCH_SIZE
    torch.set_num_threads(1)
    if moment is not None:
        moment.arm(PosteriorSampler, "run")
    if write is not None:
        die_in_zarr_write(write)
    model = classifier()
    guide: nn.Module = MeanFieldNormal(model)
    if kind == "ensemble":
        guide = Ensemble(model, PointEstimate, members=2)
    options: dict[str, Any] = {
        "draws": 3,
        "seed": 5,
        "resume": True,
        "progress": False,
        "device": "cpu",
    }
    predict(
        model, guide, Batches(cases(), batch_size=BATCH_SIZE), store=store, prior_draws=2, **options
    )


KERNELS: dict[str, Kernel] = {
    "nuts": NUTS(4),
    "nuts-dense": NUTS(3, mass="dense"),
    "nuts-fixed": NUTS(3, step_size=0.02, mass="identity"),
    "hmc": HMC(max_steps=8),
    "sgld": SGLD(1e-4),
    "sgld-cycles": SGLD(1e-4, cycle=10, explore=0.5),
    "sghmc": SGHMC(1e-5),
    "sghmc-cycles": SGHMC(1e-5, momentum=0.5, cycle=10, explore=0.5),
}


def sampled_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2), nn.Tanh(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(2, 2)
    )


def sampled_model(site: str = "weights", **options: Any) -> BayesianClassifier:
    torch.manual_seed(0)
    model = BayesianClassifier(sampled_network(), ["no", "yes"], **options)
    model.network.site = site
    return model


def sampled_batches(**options: Any) -> Batches:
    return Batches(cases(), batch_size=12, **options)


def weights_of(guide: KeptChains) -> np.ndarray:
    """All draws of the weights, dims (chain, draw, weight)."""
    return guide.posterior()["posterior"].dataset["weights"].values


def sample_chains(name: str, model: Any, **options: Any) -> KeptChains:
    """Two short chains of a kernel."""
    settings: dict[str, Any] = {"draws": 6, "warm_up": 20, "chains": 2, "seed": 5, **options}
    kernel = settings.pop("kernel", KERNELS[name])
    data = sampled_batches(shuffle=name.startswith("sg"))
    with warnings.catch_warnings():  # so few steps adapt little
        warnings.filterwarnings("ignore", ".* of the trajectories diverged")
        return sample(model, data, kernel, device="cpu", progress=False, **settings)


def sample_apart(name: str, folder: Path, moment: Moment | None) -> None:
    torch.set_num_threads(1)
    if moment is not None:
        moment.arm(Sampler, "_take")
    model, path = sampled_model(), folder / "run.pt"
    guide = sample_chains(name, model, checkpoint=path, checkpoint_every=0, resume=True)
    save(folder / "chains.pt", model, guide)


def run_fit(model: Any, path: Path) -> None:
    """Train into a checkpoint that another verb has written."""
    data = sampled_batches()
    fit(model, PointEstimate(model), data, checkpoint=path, resume=True, progress=False)
