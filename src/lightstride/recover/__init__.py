"""What a cut model keeps learns to answer like the dense one; its shape stays.

teacher    what the dense model says, once    said    kept on disk for further passes
losses    KL in slices with its gradient    attention    plain products on a CPU
student    which weights learn    activations    their bytes; blocks that compute them again
optimizer  Adam over bf16 weights    factored    with its second moment as means of rows and columns
pace       learning rates by steps and minutes    loop    steps, checkpoints, a clean stop
extrapolate   the perplexity at the end, from the first minutes
"""
