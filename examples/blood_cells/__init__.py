"""Detection of blood cells: training, scores and pictures."""
