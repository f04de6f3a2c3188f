"""Decoding in three modes.

decoder    the modes, and a session of them    headed    the same for a base with a draft head
lossless   the base checks a tree of drafts    budget, costs, pacing    how many of them
trust      nothing is checked, and a step's tokens are one entry
"""
