"""Buying labels where they teach most.

learning    ``active_learn``, the loop: train, score the pool, ask the oracle
oracles     labels that are known, and a function that is asked
purchases   what was bought when, and its figures, as a tree
stopping    when enough is known, by validation figures
"""
