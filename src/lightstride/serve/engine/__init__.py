"""The side that computes: one thread a model steps a session for all requests.

stepper  the thread, which all models share                          ticket   an answer on its way
engine   takes a model's requests in, steps, tells what came
model    a served model: tokenizer, template, grammars, its engine
sessions one session a memory plan
choices  penalties, biases and grammars as a hook of the session     grammar  JSON schemas
"""
