"""Serving models over HTTP, as the OpenAI API does, from one machine.

seam      values that cross between the API and the engine, and what the API asks of a model
limits    how much one request, and all together, may ask for
faults    errors as clients of the OpenAI API read them
schemas/  what requests look like      api/   routes, streams, guards: no torch in there
engine/   one thread that steps a session for all requests; tokens, templates, grammars
page/     the chat in the browser, one file      run   uvicorn, signals, the end
"""
