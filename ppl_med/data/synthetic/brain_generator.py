"""Synthetic brains with an atrophy of known severity: who is diseased, and where, is known.

Each volume is a skull-stripped brain as a T1-weighted scan shows it: cerebrospinal fluid, grey and
white matter, ventricles, and a pair of hippocampi. A patient has one severity s, uniform on 0..1:

    hippocampi (mm³)         = H (1 - a s) (1 - 0.003 (age - 75)) e^{0.05 z} · (brain / mean brain)
    P(diseased | s)          = sigmoid(k (s - 0.5))
    P(label = 1 | s)         = f + (1 - 2 f) P(diseased | s)

with a = ``atrophy``, k = ``steepness``, f = ``label_noise``, and z standard normal, of the patient.
Fluid fills what the hippocampi lose, and nothing else depends on s. Nuisances, none of which knows
s: size and proportions of the brain, folds and texture (a patient's own, as a fingerprint is), age,
uniform on 60..90 (which widens the ventricles too), and in every scan the pose, the scanner (its
contrast, bias field and noise) and the noise.

The outline is one of two classes of one volume, "round" and "long". By default it is drawn apart
from the label; ``shape_given_label`` lets it follow the label, the confounder of which collections
of scans are suspected.

Axes are those of the readers: depth runs from feet to head, rows from back to front, columns from
left to right. The field of view is 144 by 168 by 144 mm whatever ``size`` is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import choice, finite, positive, reject, whole
from ppl_med.data.random_streams import random_stream

Field = NDArray[np.float32]  # dims (case, depth, row, col); within, axes run right, front, top

SHAPES = ("round", "long")
FIELD_OF_VIEW = (144.0, 168.0, 144.0)  # mm along depth, row and col
AXES = np.array([54.0, 64.0, 50.0])  # mean half axes of a round brain, mm right, front, top
LONG = np.array([0.92, 1.12, 1 / (0.92 * 1.12)])  # of a long brain over those of a round one
HIPPOCAMPUS = np.array([0.22, 0.36, 0.24])  # healthy half axes over those of the brain: large
_HIPPOCAMPUS_AT = np.array([0.42, -0.05, -0.35])
_VENTRICLE, _VENTRICLE_AT = np.array([0.09, 0.32, 0.13]), np.array([0.15, 0.05, 0.12])
_FLUID, _GREY, _WHITE = 0.1, 0.55, 0.85  # mean intensities
_EDGE = 0.05  # coverage from which a voxel belongs to a structure
_BLOCK = 64  # scans rendered at a time, which bounds the memory
_LABELS, _SHAPES, _PATIENTS, _FOLDS, _SCANS, _NOISE = range(6)  # streams of random numbers


class _Patients(NamedTuple):
    """What stays the same in all scans of a patient; first axis patient."""

    half_axes: NDArray[np.float64]  # mm, (patient, 3)
    healthy: NDArray[np.float64]  # linear size of the hippocampi without disease, over the mean
    left: NDArray[np.float64]  # the same with the disease
    ventricle: NDArray[np.float64]  # linear size of the ventricles, over the mean
    folds: NDArray[np.float32]  # amplitude, three frequencies and a phase, (patient, fold, 5)
    texture: NDArray[np.float32]  # (patient, 6, 7, 6)


def brains(
    num_cases: int,
    *,
    size: Sequence[int] = (24, 28, 24),
    scans_per_patient: int = 1,
    atrophy: float = 0.6,
    steepness: float = 12.0,
    label_noise: float = 0.05,
    num_scanners: int = 3,
    noise: float = 0.05,
    shape: str = "random",
    shape_given_label: Sequence[float] = (0.5, 0.5),
    seed: int = 0,
) -> dict[str, Any]:
    """Generate brain scans with known severity, region of atrophy and noisy labels.

    With the same ``seed``, ``num_cases``, ``size`` and ``scans_per_patient`` everything else is the
    same whatever ``atrophy`` and ``shape`` are. ``atrophy=0`` renders every scan's healthy twin,
    equal outside ``mask``, with the same labels; ``shape="long"`` gives every brain the long
    outline, of the same volume.

    Args:
        num_cases: Number of scans.
        size: Voxels along depth, row and col, 12 or more each.
        scans_per_patient: Scans of one patient, which follow each other.
        atrophy: Share of the hippocampi that is lost at severity 1, in 0..0.9.
        steepness: k, by which the probability of disease rises with the severity.
        label_noise: f, the probability that ``label`` is the wrong one, at most 0.5.
        num_scanners: Number of scanners, each with contrast, bias field and noise of its own.
        noise: Standard deviation of the noise of scanner 0; white matter is 0.85.
        shape: Outline of all brains, or "random".
        shape_given_label: Where ``shape`` is "random", the probability of the long outline for a
            patient whose ``label`` is 0, and 1.
        seed: Seed of everything drawn at random.

    Returns:
        "image" float32 (case, channel=1, depth, row, col), 0 outside the brain; "mask" bool (case,
        depth, row, col), where the healthy hippocampi would be, which is where the disease shows;
        "brain_mask" bool, likewise; "label" int64 (case), 1 is diseased, as a clinician gave it;
        "diseased" int64 (case), the truth; "severity" float64 (case); "label_probability" float64
        (case), P(label = 1 | severity), by which Bayes' rule decides; "age" float64 (case), years;
        "shape" int64 (case), 0 round, 1 long; "scanner" int64 (case); "hippocampus_volume",
        "brain_volume" and "ventricle_volume" float64 (case), mm³; "spacing" float64 (case, axis=3),
        mm; "affine" float64 (case, 4, 4), index to mm, RAS+; "patient" and "id" str (case),
        "brain-000000-0" and on.

    Raises:
        ValueError: An argument is out of its range.
    """
    whole("num_cases", num_cases)
    if np.ndim(size) != 1 or len(size) != 3:
        reject("size", "three numbers of voxels, along depth, row and col", size)
    shape3 = tuple(whole("size", n, 12, fix="in fewer a hippocampus is no voxel") for n in size)
    whole("scans_per_patient", scans_per_patient)
    finite("atrophy", atrophy, 0, 0.9)
    positive("steepness", steepness)
    finite("label_noise", label_noise, 0, 0.5)
    whole("num_scanners", num_scanners)
    finite("noise", noise, 0)
    choice("shape", shape, ("random", *SHAPES))
    if np.shape(shape_given_label) != (2,):
        reject("shape_given_label", "two probabilities, for label 0 and 1", shape_given_label)
    long_probability = [finite("shape_given_label", p, 0, 1) for p in shape_given_label]

    num_patients = -(-num_cases // scans_per_patient)
    labels = random_stream(seed, _LABELS)
    severity, toss, flip = labels.random((3, num_patients))
    age = labels.uniform(60, 90, num_patients)
    disease_probability = 1 / (1 + np.exp(-steepness * (severity - 0.5)))
    diseased = (toss < disease_probability).astype(np.int64)
    label = np.where(flip < label_noise, 1 - diseased, diseased)
    drawn = random_stream(seed, _SHAPES).random(num_patients) < np.take(long_probability, label)
    long = drawn if shape == "random" else np.full(num_patients, shape == "long")

    patients, volumes = _patients(seed, severity * atrophy, age, long)
    patient = np.arange(num_cases) // scans_per_patient
    spacing = np.array(FIELD_OF_VIEW) / shape3
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)[::-1]  # the first index is the third of right, front, top
    affine[:3, 3] = (-spacing * (np.array(shape3) - 1) / 2)[::-1]
    image = np.empty((num_cases, 1, *shape3), np.float32)
    mask, brain_mask = np.empty((2, num_cases, *shape3), bool)
    scanner = np.empty(num_cases, np.int64)
    for block, start in enumerate(range(0, num_cases, _BLOCK)):
        rows = slice(start, min(start + _BLOCK, num_cases))
        scans = random_stream(seed, _SCANS, block)
        count = rows.stop - start
        scanner[rows] = scans.integers(num_scanners, size=count)
        some = _Patients._make(values[patient[rows]] for values in patients)
        tissue, cover, region = _anatomy(scans, some, spacing[::-1], shape3[::-1])
        grain = random_stream(seed, _NOISE, block)
        acquired = _acquired(scans, grain, tissue, cover, scanner[rows], noise)
        image[rows, 0] = acquired.transpose(0, 3, 2, 1)
        mask[rows] = region.transpose(0, 3, 2, 1)
        brain_mask[rows] = cover.transpose(0, 3, 2, 1) > 0.5
    names = [f"brain-{one:06d}" for one in patient]
    by_patient = {
        "label": label,
        "diseased": diseased,
        "severity": severity,
        "label_probability": label_noise + (1 - 2 * label_noise) * disease_probability,
        "age": age,
        "shape": long.astype(np.int64),
        **volumes,
    }
    return {
        "image": image,
        "mask": mask,
        "brain_mask": brain_mask,
        **{name: values[patient] for name, values in by_patient.items()},
        "scanner": scanner,
        "spacing": np.tile(spacing, (num_cases, 1)),
        "affine": np.tile(affine, (num_cases, 1, 1)),
        "patient": np.array(names),
        "id": np.array([f"{n}-{k % scans_per_patient}" for k, n in enumerate(names)]),
    }


def _patients(
    seed: int, lost: NDArray[np.float64], age: NDArray[np.float64], long: NDArray[np.bool_]
) -> tuple[_Patients, dict[str, NDArray[np.float64]]]:
    """Draw the patients' anatomy, and the volumes that follow from it, mm³."""
    random, num = random_stream(seed, _PATIENTS), len(lost)
    head = np.exp(0.05 * random.standard_normal(num).clip(-2, 2))
    proportions = np.exp(0.02 * random.standard_normal((num, 3)).clip(-2, 2))
    half_axes = AXES * head[:, None] * proportions * np.where(long[:, None], LONG, 1.0)
    healthy = (1 - 0.003 * (age - 75)) * np.exp(0.05 * random.standard_normal(num).clip(-3, 3))
    ventricle = np.exp(0.02 * (age - 75) + 0.15 * random.standard_normal(num).clip(-2, 2))
    folds = random_stream(seed, _FOLDS)
    waves = np.concatenate(
        [
            folds.normal(0, 0.035, (num, 5, 1)),
            folds.uniform(-9, 9, (num, 5, 3)),
            folds.uniform(0, 2 * np.pi, (num, 5, 1)),
        ],
        -1,
    ).astype(np.float32)
    texture = folds.standard_normal((num, 6, 7, 6), np.float32)
    box = 4 / 3 * np.pi * half_axes.prod(1)
    volumes = {
        "hippocampus_volume": 2 * box * HIPPOCAMPUS.prod() * healthy * (1 - lost),
        "brain_volume": box,
        "ventricle_volume": 2 * box * _VENTRICLE.prod() * ventricle,
    }
    left = np.cbrt(healthy * (1 - lost))
    patients = _Patients(half_axes, np.cbrt(healthy), left, np.cbrt(ventricle), waves, texture)
    return patients, volumes


def _anatomy(
    random: np.random.Generator, some: _Patients, spacing: NDArray, shape: tuple[int, ...]
) -> tuple[Field, Field, NDArray[np.bool_]]:
    """Intensity of the tissue, coverage by the brain, and the region of the hippocampi."""
    num = len(some.healthy)
    shift, tilt = random.uniform(-2, 2, (num, 3)), np.radians(random.uniform(-4, 4, (num, 3)))
    grids = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)),
        indexing="ij",
    )
    place = np.stack(grids).reshape(3, -1)
    turned = _rotation(tilt) @ (place - shift[:, :, None])
    u = (turned / some.half_axes[:, :, None]).astype(np.float32).reshape(num, 3, *shape)
    width = np.float32(np.cbrt(spacing.prod()))
    mean_axis = np.cbrt(some.half_axes.prod(1))

    radius = np.sqrt((u**2).sum(1))
    cover = _coverage(radius, mean_axis, width)
    direction = u / np.maximum(radius, 0.05)[:, None]
    border = np.full_like(radius, 0.78)
    for amplitude, *frequency, phase in np.moveaxis(some.folds, 0, -1):
        wave = sum(_each(f) * direction[:, k] for k, f in enumerate(frequency))
        border += _each(amplitude) * np.sin(wave + _each(phase))
    white = np.clip(0.5 + (border - radius) * _each(mean_axis) / width, 0, 1)
    inside = np.clip(0.5 + (0.95 - radius) * _each(mean_axis) / width, 0, 1)
    tissue = _FLUID + (_GREY - _FLUID) * inside + (_WHITE - _GREY) * white
    tissue += 0.04 * _interpolated(some.texture, u) * inside

    sides = u.copy()
    sides[:, 0] = np.abs(sides[:, 0])
    fluid = _ellipsoid(sides, _VENTRICLE_AT, _VENTRICLE, some.ventricle, mean_axis, width)
    tissue += fluid * (_FLUID - tissue)
    healthy = _ellipsoid(sides, _HIPPOCAMPUS_AT, HIPPOCAMPUS, some.healthy, mean_axis, width)
    left = _ellipsoid(sides, _HIPPOCAMPUS_AT, HIPPOCAMPUS, some.left, mean_axis, width)
    tissue += healthy * (_GREY - tissue)
    region = healthy > _EDGE
    tissue -= np.where(region, healthy - left, 0) * (_GREY - _FLUID)
    return tissue, cover, region


def _acquired(
    random: np.random.Generator,
    grain: np.random.Generator,
    tissue: Field,
    cover: Field,
    scanner: NDArray[np.int64],
    noise: float,
) -> Field:
    """The scan: contrast and gain of the scanner, bias field of the scan, noise; 0 outside."""
    num = len(tissue)
    power = 1 + 0.25 * ((scanner % 3) - 1)
    gain = (1 + 0.15 * ((scanner % 2) * 2 - 1)) * np.exp(0.05 * random.standard_normal(num))
    slopes = 0.08 * (1 + scanner % 3)[:, None] * random.uniform(-1, 1, (num, 3))
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in tissue.shape[1:]]
    bias = sum(
        _each(slopes[:, k]) * axis.reshape([-1 if k == j else 1 for j in range(3)])
        for k, axis in enumerate(axes)
    )
    signal = _each(gain) * (1 + bias) * np.clip(tissue, 0, None) ** _each(power)
    sd = noise * (1 + 0.3 * (scanner % 4))
    grains = grain.standard_normal(tissue.shape, np.float32)
    return (cover * (signal + _each(sd) * grains)).astype(np.float32)


def _coverage(radius: Field, mean_axis: NDArray, width: np.float32) -> Field:
    """Share of each voxel within radius 1, by the distance from the surface over a voxel."""
    return np.clip(0.5 + (1 - radius) * _each(mean_axis) / width, 0, 1)


def _ellipsoid(
    u: Field, centre: NDArray, half: NDArray, size: NDArray, mean_axis: NDArray, width: np.float32
) -> Field:
    """Coverage by an ellipsoid that is ``size`` times ``half``, in coordinates of the brain."""
    steps = [(u[:, k] - np.float32(centre[k])) / np.float32(half[k]) for k in range(3)]
    radius = np.linalg.norm(np.stack(steps), axis=0) / _each(size)
    return _coverage(radius, mean_axis * np.cbrt(half.prod()) * size, width)


def _interpolated(coarse: Field, u: Field) -> Field:
    """A coarse field of a patient at points in -1..1, by Gaussian weights along each axis."""
    out = np.zeros(u[:, 0].shape, np.float32)
    centre = [np.linspace(-1, 1, n, dtype=np.float32) for n in coarse.shape[1:]]
    weights = []
    for k, knots in enumerate(centre):
        weight = np.exp(-((2.5 * (u[:, k, ..., None] - knots)) ** 2))
        weights.append(weight / np.sqrt((weight**2).sum(-1, keepdims=True)))
    num = len(u)
    first, second, third = (weight.reshape(num, -1, weight.shape[-1]) for weight in weights)
    for index in range(coarse.shape[1]):
        plane = np.einsum("npj,njk,npk->np", second, coarse[:, index], third, optimize=True)
        out += (first[:, :, index] * plane).reshape(out.shape)
    return out


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrices (case, 3, 3) about the three axes one after the other."""
    (a, b, c), (sa, sb, sc) = np.cos(angles).T, np.sin(angles).T
    zero, one = np.zeros_like(a), np.ones_like(a)
    first = np.array([[one, zero, zero], [zero, a, -sa], [zero, sa, a]])
    second = np.array([[b, zero, sb], [zero, one, zero], [-sb, zero, b]])
    third = np.array([[c, -sc, zero], [sc, c, zero], [zero, zero, one]])
    return np.einsum("ijn,jkn,kln->nil", first, second, third)


def _each(values: NDArray) -> NDArray[np.float32]:
    """One number per case, shaped to meet (case, depth, row, col)."""
    return values.astype(np.float32)[:, None, None, None]
