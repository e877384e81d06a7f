"""The first example: two classes of points."""
