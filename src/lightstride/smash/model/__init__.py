"""The computations of a smashed model.

config    body (base and grafts)    modules (micro decoder, stop head, embedder)
slots    tokens, segments, columns    confidence   P(draft right so far)
lookup    what followed before    graft_files  grafts on disk    reading   a base's states at taps
eagle3, eagle3_files   a draft head    headed   a base with one
"""
