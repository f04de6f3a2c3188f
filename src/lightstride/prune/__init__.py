"""Cut a model's widths where it hurts least (Tyr-the-Pruner, arXiv 2503.09657).

space/    admissible shapes, costs, plans    cut/    statistics, refits, cut weights
fitness    how a candidate is judged    rounds  space to plan, coarse to fine
heal    training after the cut    forecast   how long it takes
"""
