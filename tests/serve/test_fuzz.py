"""Requests made up from the server's own OpenAPI document: none of them is an error of ours."""

from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.checks import not_a_server_error

from helpers.served import Served, served, toy_model
from lightstride.serve.limits import Limits

LIMITS = Limits(choices=4, answer_seconds=20)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(toy_model(limits=LIMITS), limits=LIMITS) as s:
        yield s


def send(case: schemathesis.Case) -> int:
    """The status of a request; where it names a model, it names the one there is."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "toy"
    response = case.call(timeout=30)
    case.validate_response(response, checks=[not_a_server_error])
    return response.status_code


def fuzz(server: Served, most: int) -> Counter[int]:
    """How many requests got which status; `most` requests of every operation."""
    statuses: Counter[int] = Counter()
    for found in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():

        @seed(0)
        @settings(
            max_examples=most,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=found.ok().as_strategy())
        def requests(case: schemathesis.Case) -> None:
            statuses[send(case)] += 1

        requests()
    return statuses


def test_a_few_made_up_requests(server: Served) -> None:
    statuses = fuzz(server, 12)
    assert statuses[200] > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_2000_made_up_requests(server: Served) -> None:
    statuses = fuzz(server, 450)
    assert statuses.total() >= 2000
    assert statuses[200] > 100
