"""Quality: perplexity, and zero-shot tasks.

perplexity    strided windows    loglikelihood   scores of continuations
lm_harness    lm-eval's tasks from local files   outcome, tables results, compared and printed
"""
