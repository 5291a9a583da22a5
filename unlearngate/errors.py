"""Every error a caller can cause, as one tree.

    UnlearngateError               500  internal_error
      InvalidRequestError          400  invalid_request_error
        UnknownForgetSetError      404  forget_set_not_found
      AuthenticationError          401  invalid_api_key
      ForbiddenError               403  forbidden, or what exactly is not allowed
      ConflictError                409  conflict
      BusyError                    503  busy
      AuditUnavailableError        503  audit_unavailable
      UnavailableSetError          503  forget_set_unavailable
      ArtefactError                 -   a forget set or target folder that must not be served (raised at load)
      SentenceError                 -   a text that the target cannot say instead of an answer (raised at load)
      DataError                     -   training data that cannot be used
      TrainingError                 -   a training run that cannot go on, or whose result must not be used
      CalibrationError              -   a calibration that cannot be done, or found nothing to recommend
      DemoError                     -   a demo that cannot be built, or falls short of its acceptance
      AugmentationError             -   an endpoint that cannot be asked for training data
      UnsupportedDeploymentError    -   a configuration that would let the plain target out (raised at start-up)
      KeysFileError                 -   a keys file that cannot be used (raised at start-up and by `unlearngate keys`)

Those with an HTTP code become OpenAI-shaped error bodies: message, type, param, code.
"""

from __future__ import annotations

from pathlib import Path


class UnlearngateError(Exception):
    """Base of the tree."""

    http_status = 500
    code = "internal_error"

    def __init__(
        self, message: str, *, param: str | None = None, http_status: int | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.http_status = http_status or self.http_status
        self.code = code or self.code


class InvalidRequestError(UnlearngateError):
    """The request cannot be honoured as written."""

    http_status = 400
    code = "invalid_request_error"


class UnknownForgetSetError(InvalidRequestError):
    """A forget set was named that this server does not have."""

    http_status = 404
    code = "forget_set_not_found"


class AuthenticationError(UnlearngateError):
    """The request shows no API key, or none that this server knows."""

    http_status = 401
    code = "invalid_api_key"


class ForbiddenError(UnlearngateError):
    """This caller may not have what the request asks for."""

    http_status = 403
    code = "forbidden"


class UnavailableSetError(UnlearngateError):
    """A forget set must be in force that this server cannot put in force."""

    http_status = 503
    code = "forget_set_unavailable"


class ConflictError(UnlearngateError):
    """What is asked for contradicts what is in force."""

    http_status = 409
    code = "conflict"


class BusyError(UnlearngateError):
    """The request can be honoured, but not now."""

    http_status = 503
    code = "busy"


class TooManyRequestsError(UnlearngateError):
    """The caller has as many requests running as it may have."""

    http_status = 429
    code = "too_many_requests"


class AuditUnavailableError(UnlearngateError):
    """What was in force cannot be written down, so the request is not answered."""

    http_status = 503
    code = "audit_unavailable"


class ArtefactError(UnlearngateError):
    """A file that must not be loaded; the message names the file and the reason."""

    code = "invalid_artefact"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class SentenceError(UnlearngateError):
    """A text that cannot be said instead of an answer; the message says why."""

    code = "invalid_sentence"


class UnsupportedDeploymentError(UnlearngateError):
    """A start-up configuration under which a forget set could be bypassed or would not work."""

    code = "unsupported_deployment"


class StartError(UnlearngateError):
    """The engine did not start; the message says why, and where its log is."""

    code = "start_failed"


class KeysFileError(UnlearngateError):
    """A keys file that cannot be used; the message names the file, the field and the reason."""

    code = "invalid_keys_file"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class DataError(UnlearngateError):
    """Training data that cannot be used; the message names the file, the line and the reason."""

    code = "invalid_data"


class TrainingError(UnlearngateError):
    """A training run that cannot go on, or whose result must not be used."""

    code = "training_failed"


class CalibrationError(UnlearngateError):
    """A calibration that cannot be done, or that found no setting to recommend."""

    code = "calibration_failed"


class DemoError(UnlearngateError):
    """A demo that cannot be built, or that falls short of its acceptance."""

    code = "demo_failed"


class ModelFetchError(UnlearngateError):
    """A pretrained model that cannot be had, or is not the file it should be."""

    code = "model_fetch_failed"


class AugmentationError(UnlearngateError):
    """An endpoint that cannot be used; the message says what to do, and that what has come is kept."""

    code = "augmentation_failed"


def in_one_line(error: Exception) -> str:
    """What a library's exception says, and which one it is."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() would quote it
    kind = type(error).__name__
    text = " ".join(str(said).split()).rstrip(".")
    return f"{text} ({kind})" if text else kind
