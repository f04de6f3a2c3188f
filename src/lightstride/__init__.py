"""Light models, long strides: prune language models, and let them say several tokens a step."""

__version__ = "0.1.0"
