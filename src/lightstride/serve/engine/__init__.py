"""The side that computes: one thread a model steps a session for all requests.

engine   the thread: takes requests in, steps, tells what came       ticket   an answer on its way
model    a served model: tokenizer, template, grammars, its engine
sessions one session a memory plan
choices  penalties, biases and grammars as a hook of the session     grammar  JSON schemas
"""
