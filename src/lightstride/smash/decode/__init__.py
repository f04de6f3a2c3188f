"""Decoding in four modes.

decoder    the four modes, and a session of them
verify, lossless   what the base checks, and what it keeps    accept    speculative sampling
trust      nothing is checked
"""
