"""Models whose layers differ in width.

modeling   copied into checkpoints, stands alone    register   transformers learns them
"""
