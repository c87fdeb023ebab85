"""What went wrong between us and the hub, in one sentence that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from build.errors import BuildError


@contextmanager
def explained(model_id: str, revision: str | None) -> Iterator[None]:
    """Turn whatever goes wrong on the way into a BuildError."""
    try:
        yield
    except (OSError, httpx2.HTTPError, HFValidationError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        raise BuildError(_reason(cause or error, model_id, revision)) from error


def _reason(error: BaseException, model_id: str, revision: str | None) -> str:
    page = f"{constants.ENDPOINT}/{model_id}"
    match error:
        case GatedRepoError() if error.response.status_code == httpx2.codes.UNAUTHORIZED:
            return (
                f"{model_id} is gated and no token came with the request. Accept its licence on "
                f"{page}, then sign in with `hf auth login` or set HF_TOKEN."
            )
        case GatedRepoError():
            return (
                f"{model_id} is gated and your account has no access to it yet. Accept its licence "
                f"on {page} with the account that the token belongs to, then run this again."
            )
        case RepositoryNotFoundError():
            return (
                f"{constants.ENDPOINT} knows no model {model_id}, or it is private. Check the "
                "spelling; for a private model sign in with `hf auth login` or set HF_TOKEN."
            )
        case RevisionNotFoundError():
            return f"{model_id} has no revision {revision}. Choose one from {page}/commits/main."
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return (
                f"{model_id} is not in the cache and HF_HUB_OFFLINE is set. Unset it, or run once "
                "with a network."
            )
        case HfHubHTTPError() if error.response.status_code == httpx2.codes.UNAUTHORIZED:
            return f"{constants.ENDPOINT} refused the token. Sign in again with `hf auth login`."
        case HfHubHTTPError():
            said = f" ({error.server_message})" if error.server_message else ""
            return (
                f"{constants.ENDPOINT} answered {error.response.status_code}{said} for {model_id}. "
                "Try again later; what was fetched so far is kept."
            )
        case httpx2.HTTPError():
            return (
                f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}). Check the "
                "network and run this again; what was fetched so far is kept."
            )
        case HFValidationError():
            return (
                f"{model_id!r} is neither a directory nor a hub id such as google/medgemma-4b-it."
            )
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk of {constants.HF_HOME} is full. Make room, or point HF_HOME at another "
                "disk, and run this again; what was fetched so far is kept."
            )
    return f"{model_id} could not be fetched: {error}"
