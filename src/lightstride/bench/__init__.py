"""Speed and memory of a model, alone or in turn with another, and of the machine under it."""
