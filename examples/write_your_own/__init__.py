"""A plain Pyro function of your own."""
