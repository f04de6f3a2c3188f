"""How much one request, and all requests together, may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server; whatever lies beyond them is refused before anything is computed."""

    body_bytes: int = 4 * 1024 * 1024
    """Largest body of a request."""
    body_seconds: float = 30
    """Longest time a body may take to arrive."""
    messages: int = 2048
    """Most messages of a conversation."""
    choices: int = 16
    """Most answers of one request: `n`, times the prompts of a completion."""
    top_logprobs: int = 20
    """Most alternatives a token is reported with."""
    stop_strings: int = 16
    """Most stop strings of a request."""
    stop_characters: int = 256
    """Longest stop string."""
    biases: int = 1024
    """Most tokens of `logit_bias`."""
    tools: int = 128
    """Most tools of a request."""
    schema_bytes: int = 64 * 1024
    """Largest JSON schema, as text."""
    schema_seconds: float = 5
    """Longest time a schema may take to compile."""
    queue: int = 64
    """Most answers that wait for a row; beyond it a request is told to come back."""
    rows: int = 16
    """Most answers that are written at the same time."""
    answer_seconds: float = 600
    """Longest time an answer may take, its wait in the queue included."""
    reader_seconds: float = 30
    """Longest time a client may take to read what was sent."""
    keep_alive_seconds: float = 15
    """Silence of a stream after which a comment is sent, so that nobody takes it for dead."""
