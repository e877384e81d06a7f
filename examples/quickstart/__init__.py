"""The first example, by parts."""
