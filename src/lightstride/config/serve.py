"""Flags of `lightstride serve`."""

import ipaddress
import os
from dataclasses import dataclass
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from lightstride.config.base import ModelCommand, OptionalSize, require, require_choice
from lightstride.config.decoding import Mode
from lightstride.config.generate import KvType
from lightstride.config.values import parse_size

KEY_VARIABLE = "LIGHTSTRIDE_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ModelCommand):
    """Serve models over HTTP, as the OpenAI API does, with a page to look at."""

    example: ClassVar[str] = "lightstride serve smollm2-135m-smash --port 8000"

    models: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="MODEL [MODEL ...]", help_behavior_hint="(required)"),
    ]
    """One or several models: hub ids, folders, .gguf files, or built-in names."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine alone, any other needs a
    key."""
    port: int = 8000
    """Port to listen on; 0 takes one that is free."""
    api_key: Annotated[
        str | None, arg(metavar="KEY", help_behavior_hint=f"(default: ${KEY_VARIABLE})")
    ] = None
    """Key that every request must bring, but for the page and the health checks."""
    cors: Annotated[
        tuple[str, ...], arg(metavar="[ORIGIN ...]", help_behavior_hint="(default: none)")
    ] = ()
    """Origins whose pages may send requests, such as http://localhost:3000; none by default."""
    mode: Annotated[
        Mode | None,
        arg(metavar="{lossless,ar,trust}", help_behavior_hint="(default: each model's own)"),
    ] = None
    """How smashed models decode where a request does not say."""
    max_new_tokens: int = 1024
    """Longest answer where a request does not say, in tokens."""
    temperature: float = 0.0
    """Temperature where a request does not say; 0 takes the likeliest token."""
    rows: int = 16
    """Most answers that a model writes at the same time."""
    queue: int = 64
    """Most answers that wait for a row of a model; beyond them requests are told to come back."""
    kv: Annotated[
        float | None, arg(metavar="S", help_behavior_hint="(default: each model's own)")
    ] = None
    """KV entries a token where a request does not say: the budget of one of a model's memory plans;
    1 is the full cache."""
    kv_dtype: KvType = "model"
    """Precision of the KV cache: the model's own, or int8."""
    kv_entries: int = 65536
    """Most KV entries of a model's answers together, prompts included; a row counts as if it kept
    them all, whatever its budget."""
    no_prefix_cache: bool = False
    """Read every prompt whole; without it, KV entries of what was read and said are kept for
    prompts that begin the same, as far as --kv-entries has room."""
    exact: bool = False
    """Give the same bits whatever is checked or answered beside it, also in bfloat16, where a
    request does not say."""
    shared_lookups: OptionalSize = None
    """Memory of each model, such as 64MiB, for answers that later requests look up: fewer steps
    where answers are alike. How fast an answer comes then tells of what others were answered."""
    chunk: int = 48
    """Most tokens of a prompt read in a step of others: few let them go on while a long prompt is
    read, many read it sooner."""
    timeout: float = 600.0
    """Most seconds from a request to the end of its answer."""
    grace: float = 10.0
    """Seconds that answers have to end by themselves when the server is told to end."""
    log_text: bool = False
    """Log requests with what they say; without it no prompt and no answer reaches the log."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.models), "MODEL", "''", "at least one model")
        require(len(set(self.models)) == len(self.models), "MODEL", "twice", "named once each")
        require(0 <= self.port <= 65535, "--port", self.port, "between 0 and 65535")
        if self.mode is not None:
            require_choice("--mode", self.mode, Mode)
        require(0 <= self.temperature <= 2, "--temperature", self.temperature, "between 0 and 2")
        require(self.queue >= 0, "--queue", self.queue, "0 or more")
        require(self.kv is None or 0 < self.kv <= 1, "--kv", self.kv, "above 0 and at most 1")
        require_choice("--kv-dtype", self.kv_dtype, KvType)
        require(self.kv_entries >= 1, "--kv-entries", self.kv_entries, "at least 1")
        if self.shared_lookups is not None:
            parse_size("--shared-lookups", self.shared_lookups)
        require(self.chunk >= 1, "--chunk", self.chunk, "at least 1")
        require(self.timeout > 0, "--timeout", self.timeout, "above 0")
        require(self.grace >= 0, "--grace", self.grace, "0 or more")
        open_ = not self.is_local and self.key is None
        require(not open_, "--host", self.host, f"used with --api-key or {KEY_VARIABLE}")
        key_text = "" if self.key is None else self.key.strip()
        require(self.key is None or bool(key_text), "--api-key", "''", "at least one character")

    @property
    def key(self) -> str | None:
        """The key that requests must bring, from the flag or the environment."""
        return self.api_key if self.api_key is not None else os.environ.get(KEY_VARIABLE)

    @property
    def is_local(self) -> bool:
        """Whether the address is reachable from this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
