"""Training steps that are recorded once as a CUDA graph and replayed from then on."""
