"""The one search over plans under a budget; it knows nothing of what a plan is a plan of.

moves    steps from plan to plan that never leave the budget
guided    the default: starts from prior losses, learns from what it has evaluated
surrogate    what `guided` believes of every site    evolution   the published search
even    all blocks alike    evaluation_log   nothing is asked twice
"""
