"""From a name to a model: hub id, folder, .gguf file or built-in name.

load    the one entrance    builtin   weights that come in Python packages
gguf    GGUF files as folders    explain   transformers' errors in one line
conversions   converted copies in the cache: checked, limited in size, listed
"""
