"""What a server refuses, and how: keys, hosts, bodies, shapes; and what anybody may see."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from helpers.served import Served, served, toy_model
from lightstride.serve.limits import Limits

ASK = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def open_server() -> Iterator[Served]:
    with served(toy_model(), limits=Limits(body_bytes=10_000, body_seconds=0.5)) as s:
        yield s


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with served(toy_model(), key="secret", origins=("http://friend.example",)) as s:
        yield s


def error_of(response: httpx.Response) -> dict:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


@pytest.mark.parametrize(
    "header",
    [None, "secret", "Basic secret", "Bearer", "Bearer wrong", "Bearer secret2", "Bearer \xe9"],
)
def test_a_wrong_key(locked: Served, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for path in ("/v1/models", "/metrics", "/slots", "/openapi.json", "/nowhere"):
        response = httpx.get(locked.url + path, headers=headers)
        assert response.status_code == 401
        assert error_of(response)["code"] == "invalid_api_key"
        assert "secret" not in response.text


def test_the_right_key_and_what_needs_none(locked: Served) -> None:
    right = {"Authorization": "Bearer secret"}
    assert httpx.post(locked.url + PATH, json=ASK, headers=right).status_code == 200
    for path in ("/", "/health", "/ready", "/version"):
        assert httpx.get(locked.url + path).status_code == 200


def test_other_pages_may_ask_only_where_that_was_asked_for(
    locked: Served, open_server: Served
) -> None:
    def preflight(url: str, origin: str) -> httpx.Response:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        return httpx.options(url + PATH, headers=headers)

    friend = preflight(locked.url, "http://friend.example")
    assert friend.headers["access-control-allow-origin"] == "http://friend.example"
    assert preflight(locked.url, "http://other.example").status_code == 400
    closed = preflight(open_server.url, "http://friend.example")
    assert "access-control-allow-origin" not in closed.headers
    assert closed.status_code == 405


def test_a_form_of_a_foreign_page_is_no_request(open_server: Served) -> None:
    response = httpx.post(
        open_server.url + PATH, content=json.dumps(ASK), headers={"Content-Type": "text/plain"}
    )
    assert response.status_code == 400


def test_a_foreign_host_name_is_not_answered_to(open_server: Served) -> None:
    response = httpx.get(open_server.url + "/v1/models", headers={"Host": "evil.example"})
    assert response.status_code == 403
    assert error_of(response)["code"] == "wrong_host"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"\xff\xfe", ""),
        (b"[]", "dictionary"),
        (b"null", ""),
        (b'"x"', ""),
        (b"[" * 9000, ""),
        (b'{"model": "toy", "messages": [], "seed": ' + b"9" * 5000 + b"}", ""),
        (b'{"model": "toy", "messages": [{"role": "user", "content": "\\ud800"}]}', ""),
        (b'{"model": "toy", "messages": [{"role": "user", "content": "x"}], "top_p": NaN}', ""),
        (b'{"model": "toy", "messages": [{"role": "user", "content": "x"}], "\\ud800": 1}', ""),
    ],
)
def test_malformed_bodies(open_server: Served, content: bytes, said: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(open_server.url + PATH, content=content, headers=headers)
    assert response.status_code == 400
    assert said in error_of(response)["message"]


def test_a_large_body(open_server: Served) -> None:
    body = json.dumps({**ASK, "user": "x" * 20_000}).encode()
    headers = {"Content-Type": "application/json"}
    whole = httpx.post(open_server.url + PATH, content=body, headers=headers)
    assert whole.status_code == 413
    parts = (body[i : i + 1000] for i in range(0, len(body), 1000))
    chunked = httpx.post(open_server.url + PATH, content=parts, headers=headers)
    assert chunked.status_code == 413
    assert error_of(chunked)["code"] == "too_large"


def test_a_body_that_does_not_come(open_server: Served) -> None:
    port = int(open_server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: 50\r\n\r\n{{".encode())
        assert b" 408 " in sock.recv(4096).split(b"\r\n")[0]


def test_unknown_paths_and_methods(open_server: Served) -> None:
    assert error_of(httpx.get(open_server.url + "/v2"))["type"] == "not_found_error"
    response = httpx.get(open_server.url + PATH)
    assert response.status_code == 405
    assert error_of(response)["type"] == "invalid_request_error"


def test_an_error_does_not_repeat_what_was_sent(open_server: Served) -> None:
    ask = {**ASK, "temperature": "my password"}
    assert "password" not in httpx.post(open_server.url + PATH, json=ask).text


def test_version_health_and_ready(open_server: Served) -> None:
    assert httpx.get(open_server.url + "/version").json() == {"version": "0.1.0"}
    assert httpx.get(open_server.url + "/health").json() == {"status": "ok"}
    open_server.service.draining = True
    try:
        assert httpx.get(open_server.url + "/ready").status_code == 503
        refused = httpx.post(open_server.url + PATH, json=ASK)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert httpx.get(open_server.url + "/health").status_code == 200
    finally:
        open_server.service.draining = False


def test_meters_count(locked: Served) -> None:
    right = {"Authorization": "Bearer secret"}

    def read() -> dict[str, float]:
        text = httpx.get(locked.url + "/metrics", headers=right).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    before = read()
    httpx.post(locked.url + PATH, json=ASK, headers=right)
    httpx.post(locked.url + PATH, json={**ASK, "model": "none"}, headers=right)
    after = read()

    def grown(name: str, labels: str = 'model_name="toy"') -> float:
        key = f"{name}{{{labels}}}"
        return after[key] - before.get(key, 0)

    assert grown("vllm:generation_tokens_total") == 4
    assert grown("vllm:prompt_tokens_total") > 10
    assert grown("vllm:spec_decode_num_drafts_total") == 3
    assert grown("vllm:spec_decode_num_accepted_tokens_total") == 1
    assert grown("vllm:e2e_request_latency_seconds_count") == 1
    assert grown("lightstride:errors_total", 'status="404"') == 1
    assert after['vllm:num_requests_running{model_name="toy"}'] == 0
    assert httpx.get(locked.url + "/slots", headers=right).json()["toy"]["waiting"] == 0
