"""The only room that knows layer names.

families/   what each family calls its layers    uneven/    models whose layers differ in width
opening/    from a name to a model    shapes    sites, shapes, parameter counts
rebuild     from the widths of a model's blocks to the class and config that say so
device, fingerprint, sliced_logits    small tools of models
"""
