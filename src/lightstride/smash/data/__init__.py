"""From prompts to batches.

self_prompts   questions the model asks itself    answers, scores   its answers and their entropies
cutting    answers into segments    examples    prompt, answer, scores
packing    rows and batches    ceiling    what no training can exceed
"""
