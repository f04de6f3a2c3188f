"""Admissible shapes of every site and their costs, as exact integers.

plan    one shape for every site    targets   limits of the engines
budget    parameters, bytes, nanoseconds    latency   measured time of a shape
narrow    the uniform plan, and the levels around a plan
"""
