"""From posterior draws to a tree: sampler, noise per case, tree builder, sinks, functions."""
