"""Boxes: a posterior over sets of objects, and how good it is."""

__all__: list[str] = []
