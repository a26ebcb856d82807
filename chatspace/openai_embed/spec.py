"""The run spec of `kind: embed_openai`: a dataset through an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from chatspace.spec.base import RunSpec, SlicesSection
from chatspace.spec.chunks import check_chunks
from chatspace.spec.section import Section
from chatspace.spec.slurm import SlurmSection

# Source: https://platform.openai.com/docs/api-reference/embeddings/create
MAX_INPUTS = 2048
MAX_REQUEST_TOKENS = 300_000
MAX_INPUT_TOKENS = 8191
MAX_CONCURRENCY = 256


_LONG_TEXT = ("truncate", "error", "skip", "chunk")


class ModelSection(Section):
    """Which model, where it is served, and what happens to rows that it cannot take."""

    name: str | None = Field(None, min_length=1)
    """Model as the endpoint calls it; with Azure the deployment [$OPENAI_EMBED_MODEL]."""
    dimensions: int | None = Field(None, gt=0)
    """Length of the vectors, for models that can shorten them [the model's own]."""
    base_url: str | None = Field(None, min_length=1)
    """Address of a compatible server, such as http://localhost:8000/v1 [$OPENAI_BASE_URL, else
    OpenAI's]."""
    provider: Literal["auto", "openai", "azure"] = "auto"
    """`auto` is Azure where $AZURE_OPENAI_ENDPOINT is set and no base_url is given."""
    api_version: str | None = None
    """Version of Azure's API [$OPENAI_API_VERSION]."""
    max_tokens: int = Field(MAX_INPUT_TOKENS, gt=0)
    """Longest row in tokens; exact where tiktoken has the model's encoding at hand, else the
    endpoint's own limit counts."""
    on_too_long: Literal["truncate", "error", "skip"] = "truncate"
    """What happens to a longer row; it is counted either way."""
    long_text: Literal["truncate", "error", "skip", "chunk"] | None = None
    """Another name of `on_too_long`, as `kind: embed` has it, and `chunk`.

    With `chunk` a longer row becomes several rows of the output, each the vector of a part of its
    text. Where tokens are estimated, a chunk that the endpoint refuses is cut, and counted.
    """
    chunk_tokens: int | None = Field(None, gt=0)
    """Longest chunk in tokens [max_tokens; must be given where tokens are estimated]."""
    overlap_tokens: int | None = Field(None, ge=0)
    """Tokens of a chunk that the next begins with, at most; half a chunk or less [0]."""
    document_vector: bool | None = None
    """Store a vector of each whole row beside its first chunk: the chunks' mean [false]."""
    encoding: str | None = Field(None, min_length=1)
    """Encoding of tiktoken that counts the tokens [the model's, where tiktoken knows it]."""

    @property
    def is_chunked(self) -> bool:
        """Whether long rows are cut into chunks."""
        return self.long_text == "chunk"

    @property
    def limit_tokens(self) -> int:
        """Most tokens in one vector."""
        return self.chunk_tokens or self.max_tokens

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, values: object) -> object:
        """Gives what happens to long rows the one name that is hashed."""
        if not isinstance(values, dict):
            return values
        # What is off by itself is not hashed either.
        is_off = {"overlap_tokens": 0, "document_vector": False}
        values = {k: v for k, v in values.items() if k not in is_off or v is not is_off[k]}
        if values.get("long_text") not in _LONG_TEXT:
            return values
        if values["long_text"] == "chunk":
            if values.get("on_too_long") not in (None, "truncate"):
                raise ValueError("long_text: chunk leaves no row too long; leave on_too_long out")
            return values
        if values.get("on_too_long") is not None:
            raise ValueError("long_text and on_too_long are one key; keep one")
        return {**values, "on_too_long": values["long_text"], "long_text": None}

    @model_validator(mode="after")
    def _check(self) -> ModelSection:
        check_chunks(
            long_text=self.long_text,
            max_tokens=self.max_tokens,
            chunk_tokens=self.chunk_tokens,
            overlap_tokens=self.overlap_tokens,
            document_vector=self.document_vector,
        )
        return self


class RequestsSection(Section):
    """How rows become requests, and how fast they are sent; no part of what is computed."""

    mode: Literal["direct", "batch"] = "direct"
    """`batch` is the Batch API: cheaper, a batch done within a day."""
    max_inputs: int = Field(MAX_INPUTS, gt=0)
    """Rows, or chunks of them, in one request."""
    max_request_tokens: int = Field(MAX_REQUEST_TOKENS, gt=0)
    """Tokens in one request."""
    concurrency: int = Field(8, gt=0)
    """Requests of one task at the same time."""
    requests_per_min: int | None = Field(None, gt=0)
    """Limit of your account, shared by the tasks of the run [what the endpoint's headers say]."""
    tokens_per_min: int | None = Field(None, gt=0)
    """Limit of your account, shared by the tasks of the run [what the endpoint's headers say]."""
    timeout_s: float | None = Field(None, gt=0)
    """Seconds after which a request counts as lost [$OPENAI_TIMEOUT, else 120]."""
    give_up_min: float = Field(30.0, gt=0)
    """Minutes for which a request is tried again before its task fails."""
    max_batches: int = Field(8, gt=0)
    """Shards of one task that are with the Batch API at the same time."""
    poll_s: float = Field(30.0, gt=0)
    """Seconds between two looks at a batch."""

    @model_validator(mode="after")
    def _check(self) -> RequestsSection:
        most = {
            "max_inputs": MAX_INPUTS,
            "max_request_tokens": MAX_REQUEST_TOKENS,
            "concurrency": MAX_CONCURRENCY,
        }
        for key, limit in most.items():
            if getattr(self, key) > limit:
                raise ValueError(f"{key}={getattr(self, key)} is above {limit}, the most there is")
        return self


class SpendingSection(Section):
    """Whether money may be spent, and how a dry run finds out how much."""

    execute: bool = False
    """Send the requests; without it nothing is sent and nothing is spent."""
    ask_endpoint: bool = False
    """Let a dry run send one request of a few rows: the endpoint's token count and limits."""
    sample_rows: int = Field(2000, ge=0)
    """Rows whose tokens a dry run counts, spread over the dataset; 0 for all."""


class ApiSlurmSection(SlurmSection):
    """Directives of the array job; requests need no GPU and little else."""

    gpus_per_task: int | None = Field(0, ge=0)
    """GPUs of one array task on each of its nodes: none."""
    cpus_per_task: int | None = Field(2, gt=0)
    """CPU cores of one array task."""
    mem_gb: int | None = Field(8, gt=0)
    """Host memory of one array task, GiB."""


class ApiSlicesSection(SlicesSection):
    """How shards are grouped into array tasks; one task sends many requests at a time."""

    @model_validator(mode="before")
    @classmethod
    def _one_task(cls, values: object) -> object:
        ways = {"count", "rows_per_slice", "max_tasks"}
        if isinstance(values, dict) and not ways & {k for k, v in values.items() if v is not None}:
            return {**values, "count": 1}
        return values


class EmbedOpenAISpec(RunSpec):
    """One dataset, one model behind an endpoint, one folder of vectors.

    Where the model is served and how fast it is asked are not hashed: a run goes on when a server
    has moved to another port, or with other limits.
    """

    UNHASHED: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        {
            *(("requests", key) for key in RequestsSection.model_fields),
            *(("spending", key) for key in SpendingSection.model_fields),
            *(("model", key) for key in ("base_url", "provider", "api_version")),
        }
    )

    kind: Literal["embed_openai"]
    model: ModelSection = ModelSection()
    requests: RequestsSection = RequestsSection()
    spending: SpendingSection = SpendingSection()
    slices: SlicesSection = ApiSlicesSection(count=1)
    slurm: SlurmSection = ApiSlurmSection()

    def as_if_allowed(self) -> EmbedOpenAISpec:
        """Returns the same spec with leave to spend: it is looked at, and nothing is sent."""
        spending = self.spending.model_copy(update={"execute": True})
        return self.model_copy(update={"spending": spending})
