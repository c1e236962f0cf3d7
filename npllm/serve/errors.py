"""What a client is told when a request cannot be answered, in OpenAI's form."""

from starlette.responses import JSONResponse


class ApiError(Exception):
    """A refused request.

    status: of HTTP. message: one sentence, `what is wrong; what to do.` param: the
    field that is wrong. code: for programs. headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> dict:
        """The JSON of the error."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response with the error."""
        return JSONResponse(self.body(), self.status, self.headers)


KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
