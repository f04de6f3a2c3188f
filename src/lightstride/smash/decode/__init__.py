"""Decoding in four modes.

decoder    the loops of trust and ar, and of the checked modes    outcome   what a step brought
verify, lossless what the base checks, and what it keeps    accept    speculative sampling
chain_drafter, tree_drafter   what proposes further tokens
"""
