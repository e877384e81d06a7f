"""What the studies of ambiguous masks share: the models they compare and how these are trained."""
