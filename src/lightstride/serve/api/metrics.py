"""Counters and histograms for Prometheus, under the names that vLLM's dashboards know."""

import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lightstride.serve.faults import ApiError
from lightstride.serve.seam import Finish, Load, News

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Meters:
    """All that is measured, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.running = self.gauge("vllm:num_requests_running", "Answers being written.")
        self.waiting = self.gauge("vllm:num_requests_waiting", "Answers waiting for a row.")
        self.free = self.gauge("lightstride:kv_entries_free", "KV entries not yet spoken for.")
        self.shared_bytes = self.gauge(
            "lightstride:shared_lookup_bytes", "Bytes held for lookups in earlier answers."
        )
        self.shared_tokens = self.gauge(
            "lightstride:shared_lookup_tokens", "Tokens of earlier answers that are looked up."
        )
        self.prompt = self.counter("vllm:prompt_tokens", "Tokens of prompts.")
        self.asked = self.counter(
            "vllm:prefix_cache_queries", "Tokens of prompts that were looked up."
        )
        self.cached = self.counter("vllm:prefix_cache_hits", "Tokens of prompts not read again.")
        self.said = self.counter("vllm:generation_tokens", "Tokens of answers.")
        self.steps = self.counter("vllm:spec_decode_num_drafts", "Steps of answers.")
        self.drafted = self.counter(
            "vllm:spec_decode_num_accepted_tokens", "Tokens beyond the first of their step."
        )
        self.entries = self.counter("lightstride:kv_entries", "KV entries of ended answers.")
        self.ended = Counter(
            "vllm:request_success",
            "Answers that ended, by reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self.failed = Counter(
            "lightstride:errors", "Requests refused or failed.", ["status"], registry=self.registry
        )
        self.first = self.histogram("vllm:time_to_first_token_seconds", SECONDS)
        self.between = self.histogram("vllm:request_time_per_output_token_seconds", TOKEN_SECONDS)
        self.whole = self.histogram("vllm:e2e_request_latency_seconds", SECONDS)

    def gauge(self, name: str, text: str) -> Gauge:
        """A gauge by model."""
        return Gauge(name, text, ["model_name"], registry=self.registry)

    def counter(self, name: str, text: str) -> Counter:
        """A counter by model."""
        return Counter(name, text, ["model_name"], registry=self.registry)

    def histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        """A histogram of seconds by model."""
        text = name.partition(":")[2].replace("_", " ")
        return Histogram(name, f"{text}.", ["model_name"], buckets=buckets, registry=self.registry)

    def note_fault(self, fault: ApiError) -> None:
        """A request was refused or failed."""
        self.failed.labels(str(fault.status)).inc()

    def page(self, loads: Mapping[str, Load]) -> bytes:
        """The text that Prometheus reads."""
        for name, load in loads.items():
            self.running.labels(name).set(load.running)
            self.waiting.labels(name).set(load.waiting)
            self.free.labels(name).set(load.free_entries)
            self.shared_bytes.labels(name).set(load.shared_bytes)
            self.shared_tokens.labels(name).set(load.shared_tokens)
        return generate_latest(self.registry)


class Clock:
    """The times of one answer, told to the meters when they are known."""

    def __init__(self, meters: Meters, name: str, prompt_tokens: int) -> None:
        self.meters = meters
        self.name = name
        self.start = time.perf_counter()
        self.first: float | None = None
        self.tokens = 0
        self.prompt_tokens = prompt_tokens
        meters.prompt.labels(name).inc(prompt_tokens)

    def note(self, news: News) -> None:
        """One step has come."""
        now = time.perf_counter()
        if self.first is None:
            self.first = now
            self.meters.first.labels(self.name).observe(now - self.start)
            self.meters.asked.labels(self.name).inc(self.prompt_tokens)
            self.meters.cached.labels(self.name).inc(news.cached_tokens)
        self.tokens += len(news.tokens)
        if news.finish is not None:
            self.end(now, news.finish, news.kv_entries)

    def end(self, now: float, finish: Finish, kv_entries: int) -> None:
        """The answer is whole."""
        assert self.first is not None
        self.meters.ended.labels(self.name, finish).inc()
        self.meters.whole.labels(self.name).observe(now - self.start)
        if self.tokens > 1:
            each = (now - self.first) / (self.tokens - 1)
            self.meters.between.labels(self.name).observe(each)
        self.meters.entries.labels(self.name).inc(kv_entries)

    def close(self, steps: int) -> None:
        """Nothing more comes, whole or not; counts what was said."""
        self.meters.said.labels(self.name).inc(self.tokens)
        self.meters.steps.labels(self.name).inc(steps)
        self.meters.drafted.labels(self.name).inc(max(0, self.tokens - steps))
