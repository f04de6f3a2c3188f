"""The only room that knows layer names.

families/   what each family calls its layers    uneven/    models whose layers differ in width
opening/    from a name to a model    shapes    sites, shapes, parameter counts
device, fingerprint, sliced_logits    small tools of models
"""
