"""The study of flips and turns of cells."""
