"""HTTP: routes, streams, guards. No tensor, no tokenizer; models are behind `serve.seam`.

app       everything put together        guard      who may come in, and how much they may bring
service   what the routes share          asks       from a request to answers that are asked for
follow    an answer and its cost         sse        streams that notice when nobody listens
chat, completions, responses, plain      the routes' shapes
toolcalls calls in an answer's text      metrics    for Prometheus, under vLLM's names
"""
