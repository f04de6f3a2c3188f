"""Several tokens a step: grafts on a model, their training, decoding with them.

model/    what is computed    decode/   one file a mode, two drafters
data/    prompts, answers, segments, packed rows    train/    loss and loop
judge/    measured on held-out answers, calibrated    hub    the face for transformers
"""
