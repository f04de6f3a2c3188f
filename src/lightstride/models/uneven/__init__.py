"""Models whose layers differ in width.

modeling   copied into checkpoints, stands alone    register   transformers learns them
rebuild    from the widths of a model's blocks to the class and config that say so
"""
