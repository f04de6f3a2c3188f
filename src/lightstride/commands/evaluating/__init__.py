"""The steps of `lightstride evaluate` beside the plain one: two models compared, one too large."""
