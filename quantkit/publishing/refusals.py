"""What the Hub's refusals mean, in one sentence each; none of them shows a URL or a token."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import errors
from huggingface_hub.errors import HTTPError  # httpx's, through it

from quantkit.core.errors import PublishError, UploadError

TRY_AGAIN = (408, 429, 500, 502, 503, 504)
LOST = (HTTPError,)
"""What huggingface_hub raises for an answer that is a refusal, or for none at all."""

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def response_of(error: BaseException) -> Any:
    """The answer behind an error, if there was one; large uploads wrap theirs."""
    found = getattr(error, "response", None)
    if found is None and error.__cause__ is not None:
        found = getattr(error.__cause__, "response", None)
    return found


def wait_asked_for(response: Any) -> float:
    """The seconds after which the Hub wants to be asked again, 0 where it does not say."""
    from huggingface_hub.utils import parse_ratelimit_headers

    if response is None:
        return 0.0
    after = response.headers.get("Retry-After", "")
    if after.isdecimal():
        return float(after)
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit is not None and not limit.remaining else 0.0


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turn whatever huggingface_hub raises into one sentence about a repository.

    Raises:
        PublishError: the user can mend it: the token, the rights, the name.
        UploadError: the Hub cannot be reached, fails, or has no room.

    """
    try:
        yield
    except errors.HFValidationError:
        raise PublishError(
            f"{repo_id!r} is not a repository; write it as namespace/name."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise PublishError("HF_HUB_OFFLINE is set, so nothing can be sent; unset it.") from None
    except errors.LocalTokenNotFoundError:
        raise PublishError(f"The Hub wants a token; {_LOG_IN}.") from None
    except (*LOST, RuntimeError, ValueError, OSError) as error:
        response = response_of(error)
        if response is not None:
            raise _refused(repo_id, response.status_code, error) from error
        raise _failed(repo_id, error) from error


def _refused(repo_id: str, status: int, error: BaseException) -> PublishError | UploadError:
    if status == 401:
        token = f"The Hub does not accept the token for {repo_id}"
        return PublishError(f"{token}; {_LOG_IN}.")
    if status == 403:
        return PublishError(
            f"The token may not write to {repo_id} ({_words(error)}); use one with write access "
            "to that namespace, or choose another with --repo."
        )
    if status == 404:
        return PublishError(
            f"{repo_id} is not on the Hub, or the token may not see it; check --repo and {_LOG_IN}."
        )
    if status == 400:
        return PublishError(f"The Hub does not take this for {repo_id}: {_words(error)}.")
    if status in (402, 413, 507):
        return UploadError(
            f"The Hub has no room for {repo_id} ({_words(error)}); what was sent stays, so free "
            "or buy storage there and run the same command again."
        )
    if status == 412:
        return UploadError(
            f"{repo_id} was changed by someone else in the meantime; run the same command again."
        )
    if status == 429:
        return UploadError(
            f"The Hub still limits the rate for {repo_id}; what was sent stays, so run the same "
            "command again in an hour."
        )
    return UploadError(
        f"The Hub answered {status} for {repo_id}, again and again; what was sent stays, so run "
        "the same command later."
    )


def _failed(repo_id: str, error: BaseException) -> Exception:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UploadError(
            "This machine's disk is full; free some space and run the same command again."
        )
    if isinstance(error, FileNotFoundError | PermissionError) and error.filename:
        return PublishError(f"{error.filename} cannot be read ({error.strerror}); build it again.")
    if isinstance(error, ValueError):
        return UploadError(
            f"The server's answer about {repo_id} is not a Hub's; check HF_ENDPOINT, or try again "
            "later."
        )
    return UploadError(
        f"The connection to the Hub failed for {repo_id} ({type(error.__cause__ or error).__name__}"
        "); what was sent stays, so run the same command again."
    )


def _words(error: BaseException) -> str:
    """What the server said, in one short line, else its status."""
    source = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
    said = getattr(source, "server_message", None) or ""
    line = next((line.strip() for line in said.splitlines() if line.strip()), "")
    return line.rstrip(".")[:200] if line else f"status {response_of(error).status_code}"
