"""Errors as clients of the OpenAI API read them: a status they retry on rightly, and one shape.

Clients retry 408, 409, 429 and everything from 500 on; so whatever would fail again is a 400, 401,
403, 404, 405, 413 or 415, and whatever may pass later is a 429 or a 503 with `Retry-After`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "timeout_error",
    "service_unavailable_error",
    "server_error",
]
TYPES: Mapping[int, ErrorType] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        408: "timeout_error",
        429: "rate_limit_error",
        503: "service_unavailable_error",
    }
)
RETRY_SECONDS = 1
"""What `Retry-After` says where waiting helps."""


class ApiError(Exception):
    """A request that is not answered; its text may be read by whoever asked."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, object]:
        """The error in OpenAI's shape, ready for JSON."""
        return {
            "error": {
                "message": self.message,
                "type": error_type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """What the response's head says besides."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else {}


def error_type(status: int) -> ErrorType:
    """OpenAI's name for the kind of error of a status."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that can never be answered as it is."""
    return ApiError(400, message, param=param, code=code)


def internal() -> ApiError:
    """A mistake of ours, of which nothing is told but that it happened."""
    return ApiError(500, "an internal error; the server's log has it", code="internal_error")


def shutting_down() -> ApiError:
    """The server is about to end."""
    return ApiError(503, "the server is shutting down", code="shutting_down")
