"""Quality: perplexity, and zero-shot tasks.

fidelity    distributions against the dense model's    last_words, loops, instructions    answers
perplexity    strided windows    loglikelihood   scores of continuations
lm_harness    lm-eval's tasks from local files   outcome, tables results, compared and printed
passes        all texts past every block, for models that are larger than memory
text_logits, block_reader    models in memory and larger ones, asked alike
"""
