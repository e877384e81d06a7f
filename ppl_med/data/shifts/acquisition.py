"""What goes wrong in a scanner, most of it in k-space, the Fourier transform of the image.

Planes and volumes alike; the phase is encoded along rows. All but the bias field act on every
channel in the same way. Results are magnitudes, as a scanner gives them.

Source: Zbontar et al., arXiv:1811.08839, for the sampling; Perez-Garcia et al., TorchIO, CMPB 208,
2021, for motion and ghosting.
"""

import numpy as np

_ORDER = 3  # of the polynomial of a bias field
_MOVES = 2  # positions besides the first


def bias_field(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Multiply by exp(f), f a random polynomial of the place, of order 3, |f| at most ``strength``.

    The mean of f is 0: the field is bright here and dark there, and not just bright.
    """
    axes = [np.linspace(-1.0, 1.0, size) for size in image.shape[1:]]
    grid = np.meshgrid(*axes, indexing="ij")
    field = np.zeros(image.shape[1:])
    for powers in np.ndindex(*[_ORDER + 1] * len(axes)):
        if 0 < sum(powers) <= _ORDER:
            terms = [place**power for place, power in zip(grid, powers, strict=True)]
            field += random.normal() * np.prod(terms, axis=0)
    field -= field.mean()
    largest = np.abs(field).max()
    return image * np.exp(strength * field / (largest if largest > 0 else 1.0))


def gibbs(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Leave out the outer ``strength`` of k-space along every axis, an ellipse: edges ring."""
    radius = np.sqrt(sum(part**2 for part in _frequencies(image)))
    return _magnitude(_transform(image) * (radius <= 1.0 - strength))


def ghosting(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Weaken every second, third or fourth line of k-space by ``strength``, but for the middle."""
    rows = _frequencies(image)[-2]
    every = int(random.integers(2, 5))
    line = np.round(rows * image.shape[-2] / 2).astype(int)
    weak = (line % every == 0) & (np.abs(rows) > 0.02)
    return _magnitude(_transform(image) * np.where(weak, 1.0 - strength, 1.0))


def motion(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Move the object twice during the scan, by up to ``strength`` of the size in the plane.

    Lines of k-space are taken from the middle outwards; those after a move see the new place.
    """
    frequencies = _frequencies(image)
    order = np.abs(frequencies[-2])
    spectrum = _transform(image)
    moments = np.sort(random.uniform(0.02, 0.3, _MOVES))
    angles = random.uniform(0.0, 2 * np.pi, _MOVES)
    phase = np.zeros(np.broadcast_shapes(*(part.shape for part in frequencies)))
    for moment, angle in zip(moments, angles, strict=True):
        # A shift by a share s of the size turns the phase by 2 pi s (cycles per image).
        cycles = [part * size / 2 for part, size in zip(frequencies, image.shape[1:], strict=True)]
        turn = strength * (np.sin(angle) * cycles[-2] + np.cos(angle) * cycles[-1])
        phase = np.where(order > moment, turn, phase)
    return _magnitude(spectrum * np.exp(-2j * np.pi * phase))


def spike(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Add one point of k-space and its mirror image: stripes of amplitude ``strength``."""
    wave = np.zeros(image.shape[1:])
    for axis, size in enumerate(image.shape[1:]):
        cycles = int(random.integers(max(1, size // 8), max(2, size // 3)))
        place = np.arange(size) / size
        wave = wave + (cycles * place).reshape([-1 if a == axis else 1 for a in range(wave.ndim)])
    return image + strength * np.cos(2 * np.pi * wave + random.uniform(0.0, 2 * np.pi))


def _frequencies(image: np.ndarray) -> list[np.ndarray]:
    """For every spatial axis the frequency over its largest, in [-1, 1], ready to broadcast."""
    axes = image.ndim - 1
    return [
        (2 * np.fft.fftfreq(size)).reshape([-1 if a == axis else 1 for a in range(axes)])
        for axis, size in enumerate(image.shape[1:])
    ]


def _transform(image: np.ndarray) -> np.ndarray:
    return np.fft.fftn(image, axes=tuple(range(1, image.ndim)))


def _magnitude(spectrum: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.ifftn(spectrum, axes=tuple(range(1, spectrum.ndim))))
