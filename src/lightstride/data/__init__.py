"""Text: where it comes from, and the token windows that are read.

documents   files, folders, hub data sets (records)    pydoc    what every Python has in help()
windows    calibration, search and held-out tokens    sampled   text from the model itself
prompts    chat prompts
"""
