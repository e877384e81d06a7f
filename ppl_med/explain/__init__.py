"""Explanations: gradients through posterior function draws, and how well they localise."""
