"""The official client behind one seam: what it raises becomes four sorts of error, without keys.

The client's own retries are off: ours count requests, obey one rate limiter and can be stopped.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from chatspace.errors import ChatspaceError, InputError, ModelError, UnfitEnvironmentError
from chatspace.openai_embed.answers import BadAnswerError
from chatspace.openai_embed.endpoint import Endpoint, redacted
from chatspace.openai_embed.limits import retry_after_s, used_up_s

Result = TypeVar("Result")

# How endpoints (OpenAI, vLLM, TEI) say that an input is too long, or a request has too much.
_TOO_LONG = re.compile(
    r"(context|input|sequence|model)[ _]length|maximum length|too (long|many tokens|large)"
    r"|max_tokens_per_request|maximum .{0,40}\btokens|exceed\w* .{0,40}\btokens"
    r"|\btokens .{0,60}(exceed|must be less|longer than|greater than)"
    r"|less than \d+ tokens|maximum allowed batch size",
    re.IGNORECASE,
)
CONNECT_TIMEOUT_S = 10.0
DELETE_TIMEOUT_S = 10.0
_TRY_AGAIN = frozenset({408, 409, 425, 429})
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


class RefusedError(Exception):
    """A request was not answered; `headers` are those of the refusal, in small letters."""

    def __init__(self, why: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(why)
        self.headers = headers or {}


class AgainError(RefusedError):
    """A request failed in a way that may pass: try again, after `after_s` where that is said."""

    def __init__(
        self,
        why: str,
        after_s: float | None = None,
        *,
        is_limit: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(why, headers=headers)
        self.after_s, self.is_limit = after_s, is_limit


class TooLongError(RefusedError):
    """The endpoint refuses a request for the length of its inputs."""


class Client:
    """An endpoint, through the official client; may be used by several threads.

    Args:
        endpoint: where the model is served.
        key: never written anywhere.

    Raises:
        UnfitEnvironmentError: the official client is not installed.
    """

    def __init__(self, endpoint: Endpoint, key: str) -> None:
        try:
            import openai
        except ImportError:
            raise not_installed() from None
        # It tells of every request, and a log has room for other things.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self._endpoint, self._key, self._errors = endpoint, key, openai
        settings: dict[str, Any] = {
            "api_key": key, "max_retries": 0,
            "timeout": openai.Timeout(
                endpoint.timeout_s, connect=min(endpoint.timeout_s, CONNECT_TIMEOUT_S)
            ),
        }  # fmt: skip
        self._client: Any
        if endpoint.provider == "azure":
            self._client = openai.AzureOpenAI(
                azure_endpoint=endpoint.base_url, api_version=endpoint.api_version, **settings
            )
        else:
            self._client = openai.OpenAI(base_url=endpoint.base_url, **settings)

    def embed(
        self, name: str, texts: Sequence[str], dimensions: int | None
    ) -> tuple[Any, Mapping[str, str]]:
        """Returns the JSON of an answer, and its headers.

        Raises:
            AgainError: it may work later.
            TooLongError: an input, or all together, are too long.
            ChatspaceError: it will never work.
        """
        asked = request_body(name, texts, dimensions)

        def send() -> tuple[Any, Mapping[str, str]]:
            response = self._client.embeddings.with_raw_response.create(**asked)
            headers = {key.lower(): value for key, value in response.headers.items()}
            try:
                return json.loads(response.content), headers
            except ValueError:
                raise BadAnswerError("it is no JSON") from None

        return self.guarded(send)

    def upload(self, content: bytes) -> str:
        """Uploads the requests of a batch; returns the id of the file."""
        file = ("requests.jsonl", content)
        return str(self.guarded(lambda: self._client.files.create(file=file, purpose="batch")).id)

    def download(self, file_id: str) -> bytes:
        """Returns the content of a file."""
        return bytes(self.guarded(lambda: self._client.files.content(file_id).content))

    def delete(self, file_id: str) -> None:
        """Deletes a file at the endpoint.

        Raises:
            AgainError: it may work later.
            ChatspaceError: it will never work.
        """
        self.guarded(lambda: self._client.files.delete(file_id, timeout=DELETE_TIMEOUT_S))

    def create_batch(self, file_id: str, metadata: dict[str, str]) -> Any:
        """Starts a batch; returns it."""
        return self.guarded(
            lambda: self._client.batches.create(
                input_file_id=file_id,
                endpoint="/v1/embeddings",
                completion_window="24h",
                metadata=metadata,
            )
        )

    def batch(self, batch_id: str) -> Any:
        """Returns a batch as it is now."""
        return self.guarded(lambda: self._client.batches.retrieve(batch_id))

    def cancel_batch(self, batch_id: str) -> Any:
        """Has the endpoint end a batch; returns it, which may take minutes to end."""
        return self.guarded(lambda: self._client.batches.cancel(batch_id))

    def find_batch(self, key: str, value: str, since: float) -> Any:
        """Returns the batch with a metadata value, None where none was made after `since`.

        Args:
            key: name in the metadata.
            value: what it must be.
            since: Unix time; batches come newest first, and older ones are not looked at.
        """

        def look() -> Any:
            for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(key) == value:
                    return batch
                if batch.created_at < since:
                    return None
            return None

        return self.guarded(look)

    def close(self) -> None:
        """Ends what is still under way."""
        self._client.close()

    def guarded(self, send: Callable[[], Result]) -> Result:
        """Returns what a call of the official client returns; what it raises becomes ours."""
        openai = self._errors
        try:
            return send()
        except openai.APITimeoutError:
            raise AgainError(f"no answer within {self._endpoint.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            reason = redacted(str(error.__cause__ or error), self._key)
            url = self._endpoint.base_url
            raise AgainError(f"connection to {url} failed: {reason}") from None
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except openai.OpenAIError as error:
            raise ModelError(f"The client refuses: {redacted(str(error), self._key)}.") from None

    def _status_error(self, error: Any) -> Exception:
        status, code = error.status_code, error.code or ""
        said = redacted(str(error.message), self._key).rstrip(".")
        said = said.removeprefix(f"Error code: {status} - ")
        headers = {key.lower(): value for key, value in error.response.headers.items()}
        if code in _NO_CREDIT or error.type in _NO_CREDIT:
            return UnfitEnvironmentError(
                f"No credit: the account has none left ({said}). Add some, then run it again."
            )
        if status in _TRY_AGAIN or status >= 500:
            is_limit = status == 429
            after_s = retry_after_s(headers)
            if after_s is None and is_limit:
                after_s = used_up_s(headers)
            return AgainError(f"{status} {said}", after_s, is_limit=is_limit, headers=headers)
        if status in (400, 413, 422) and is_too_long(said, code, error.param):
            return TooLongError(said, headers=headers)
        return self._refusal(status, said)

    def _refusal(self, status: int, said: str) -> ChatspaceError:
        url = self._endpoint.base_url
        if status in (401, 403):
            name = self._endpoint.key_names[0]
            return UnfitEnvironmentError(
                f"Key refused: {url} answers {status}: {said}. Check {name}, and what it may do."
            )
        if status == 404:
            return ModelError(
                f"Not there: {url} answers 404: {said}. Check model.name and model.base_url."
            )
        return InputError(f"Request refused: {url} answers {status}: {said}. Change what it names.")


def not_installed() -> UnfitEnvironmentError:
    """Returns the error for a machine without the official client."""
    return UnfitEnvironmentError(
        "Not installed: openai; this kind of run needs it. Run `pip install 'chatspace[openai]'`."
    )


def is_too_long(said: str, code: str = "", param: str | None = None) -> bool:
    """Returns whether a refusal is about the length of inputs.

    Args:
        said: its message.
        code: its code.
        param: the field of the request that it names, such as `input` or `input[3]`.
    """
    if param and not str(param).startswith("input"):
        return False
    return code == "context_length_exceeded" or _TOO_LONG.search(said) is not None


def request_body(name: str, texts: Sequence[str], dimensions: int | None) -> dict[str, Any]:
    """Returns the body of one request; vectors come as base64, a third of the size of numbers."""
    body: dict[str, Any] = {"model": name, "input": list(texts), "encoding_format": "base64"}
    return {**body, "dimensions": dimensions} if dimensions else body
