"""Errors in the shape that the clients of each convention read."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

_TYPES = {
    400: ("invalid_request_error", "validation"),
    401: ("authentication_error", "unauthorized"),
    403: ("permission_error", "forbidden"),
    404: ("not_found_error", "not_found"),
    405: ("invalid_request_error", "validation"),
    408: ("invalid_request_error", "timeout"),
    413: ("invalid_request_error", "validation"),
    415: ("invalid_request_error", "validation"),
    422: ("invalid_request_error", "validation"),
    429: ("rate_limit_error", "overloaded"),
    503: ("overloaded_error", "overloaded"),
}
TEI_PATHS = ("/embed", "/rerank")
RERANK_PATHS = ("/v1/rerank", "/v2/rerank")


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: One line without a text or key of the client.
        code: Machine-readable code, such as ``model_not_found``.
        headers: Further headers.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None) -> None:
        self.status, self.message, self.code, self.headers = status, message, code, headers
        super().__init__(message)


def problem(path: str, refused: Refused) -> Response:
    """Return the response to a refused request, in the shape of the convention that the path belongs to."""
    openai_type, tei_type = _TYPES.get(refused.status, ("server_error", "backend"))
    content: dict[str, object]
    if path in TEI_PATHS:
        content = {"error": refused.message, "error_type": tei_type}
    elif path in RERANK_PATHS:  # Cohere reads "message", Jina "detail"
        content = {"message": refused.message, "detail": refused.message}
    else:
        content = {"error": {"message": refused.message, "type": openai_type, "param": None, "code": refused.code}}
    return JSONResponse(content, refused.status, headers=refused.headers)
