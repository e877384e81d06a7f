"""Buying labels where they teach most.

learning     ``active_learn``: what it takes, checked
steps        the loop: ask the oracle, train, measure, score the pool
next_cases   which cases are bought next
oracles      labels that are known, and a function that is asked
purchases    what was bought when, and its figures, as a tree
stopping     when enough is known, by validation figures
"""
