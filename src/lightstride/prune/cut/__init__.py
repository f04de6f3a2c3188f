"""From text to cut weights: statistics, refits, a supernet of widths.

stream, statistics   Gram matrices, block by block    gram    sum of x x^T
choose_units    which channels, groups, heads go   refit    one site at every shape
supernet    built and opened (supernet_files)  materialize    cut sites into a model
"""
