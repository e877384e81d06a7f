"""The one toolkit for Pyro programs: sites, parameters, random numbers, isolation, the ELBO."""
