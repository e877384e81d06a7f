"""Samplers as inferences: ``sample`` with NUTS, HMC, SGLD or SGHMC leaves chains of draws."""
