"""Errors: typed exceptions; `app.server.errors` makes answers of them."""

from typing import Any


class ServiceError(Exception):
    """An answer other than 200. ``code`` is for machines, the message for people; neither holds a path."""

    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(self, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.headers = message, param, headers
        self.counted = False  # in `input_errors` already

    def body(self, request_id: str | None) -> dict[str, Any]:
        """The envelope's content."""
        return {
            "message": self.message, "type": self.type, "code": self.code, "param": self.param, "request_id": request_id
        }  # fmt: skip


class ClientError(ServiceError):
    status = 422
    type = "invalid_request_error"


class MalformedForm(ClientError):
    status, code = 400, "malformed_form"


class MalformedRequest(ClientError):
    status, code = 400, "malformed_request"


class InvalidApiKey(ClientError):
    status, code, type = 401, "invalid_api_key", "authentication_error"


class Forbidden(ClientError):
    status, code, type = 403, "forbidden", "authentication_error"


class UploadTimeout(ClientError):
    status, code = 408, "upload_timeout"


class FileTooLarge(ClientError):
    status, code = 413, "file_too_large"


class AudioTooLong(ClientError):
    status, code = 413, "audio_too_long"


class HeadTooLarge(ClientError):
    status, code = 431, "head_too_large"


class UnsupportedFormat(ClientError):
    status, code = 415, "unsupported_format"


class InvalidParameter(ClientError):
    code = "invalid_parameter"


class AudioTooShort(ClientError):
    code = "audio_too_short"


class AudioInvalid(ClientError):
    code = "audio_invalid"


class ModelNotFound(ClientError):
    status, code = 404, "model_not_found"


class ModelInUse(ClientError):
    status, code = 409, "model_in_use"


class SeveralProcesses(ClientError):
    """Asked of one process, it would not be done in the others."""

    status, code = 409, "several_processes"


class PromptNotFound(ClientError):
    status, code = 404, "prompt_not_found"


class UpgradeRequired(ClientError):
    status, code = 426, "upgrade_required"


class DecoderLost(ServiceError):
    """The process that decoded the upload is gone; the server is not."""


class Overloaded(ServiceError):
    status, code, type = 429, "overloaded", "overloaded_error"


class RateLimited(ServiceError):
    """One client asks for more than its share; the server may have room."""

    status, code, type = 429, "rate_limited", "rate_limit_error"


class NotReady(ServiceError):
    status, code = 503, "not_ready"


class Draining(ServiceError):
    status, code = 503, "draining"


class StorageFull(ServiceError):
    status, code = 507, "storage_full"


class DeadlinePassed(ServiceError):
    status, code, type = 504, "timeout", "timeout_error"


class ClientGone(Exception):
    """The client left; nobody reads the answer."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class UserError(Exception):
    """Something that the user can put right; the message says what."""

    exit_code = 1  # of a command that it ends
