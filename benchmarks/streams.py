"""A client that costs nearly nothing: streams over bare sockets, in a process of its own.

On a machine of two cores whatever the client computes is taken from the model.  So this one parses
no JSON and keeps no objects: it reads what there is, notes when the first text came, and looks for
the usage in the last bytes.  One line of JSON in, one out:

    {"host": ..., "port": ..., "bodies": [...], "later": 0.2}
    [{"first": seconds, "end": seconds, "tokens": 96}, ...]

`later` is how long the second body and those after it wait.
"""

import json
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

MARK = re.compile(rb'"content": ?"[^"]')
USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
TAIL = 4096
"""Last bytes of a stream that are kept: enough for the usage and for what may lie on a border."""


@dataclass(frozen=True)
class Told:
    """Seconds to the first text and to the end of one stream, and its tokens."""

    first: float
    end: float
    tokens: int


class Stream:
    """One request and what came of it."""

    def __init__(self, host: str, port: int, body: str) -> None:
        data = body.encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
            "Content-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        self.begin = time.perf_counter()
        self.socket = socket.create_connection((host, port))
        self.socket.sendall(head.encode() + data)
        self.socket.setblocking(False)
        self.first: float | None = None
        self.marks = 0
        self.tail = b""

    def read(self) -> bool:
        """Take in what has come; whether there may be more."""
        part = self.socket.recv(1 << 18)
        if not part:
            return False
        if self.first is None and MARK.search(self.tail + part):
            self.first = time.perf_counter() - self.begin
        self.marks += len(MARK.findall(part))
        self.tail = (self.tail + part)[-TAIL:]
        return True

    def told(self) -> dict[str, object]:
        """Its times and tokens; where no usage came, a token a chunk, as some servers send."""
        self.socket.close()
        assert self.first is not None, self.tail
        found = USAGE.findall(self.tail)
        tokens = int(found[-1]) if found else self.marks
        return {"first": self.first, "end": time.perf_counter() - self.begin, "tokens": tokens}


def run(host: str, port: int, bodies: Sequence[str], later: float) -> list[dict[str, object]]:
    """All streams at once, from now to the end of the last."""
    done: dict[int, dict[str, object]] = {}
    with selectors.DefaultSelector() as selector:
        start = time.perf_counter()
        waiting = list(enumerate(bodies))
        while len(done) < len(bodies):
            now = time.perf_counter() - start
            while waiting and (waiting[0][0] == 0 or now >= later):
                index, body = waiting.pop(0)
                stream = Stream(host, port, body)
                selector.register(stream.socket, selectors.EVENT_READ, (index, stream))
            for key, _ in selector.select(max(0.0, later - now) if waiting else None):
                index, stream = key.data
                if not stream.read():
                    selector.unregister(stream.socket)
                    done[index] = stream.told()
    return [done[index] for index in range(len(bodies))]


class Client:
    """The process, as a benchmark uses it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)

    def ask(
        self, host: str, port: int, bodies: Sequence[Mapping[str, object]], later: float = 0.0
    ) -> list[Told]:
        """What came of these requests, sent at once or the first of them sooner."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        texts = [json.dumps(body) for body in bodies]
        job = {"host": host, "port": port, "bodies": texts, "later": later}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the client has ended"
        return [Told(**each) for each in json.loads(line)]


def main() -> None:
    """Take jobs until there are no more."""
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
