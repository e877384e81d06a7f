"""What the studies of depths and of street scenes share: four variants of one net, and tables."""
