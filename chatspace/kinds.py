"""The registry of kinds: the one place that knows which folder does which sort of run.

A kind's folder holds `spec.py` (its run spec), `resolve.py` (what the plan says of its model) and
`work.py` (its slice work). Modules are named here and imported only when a run of that kind is
loaded or worked on, so that planning never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from chatspace.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Where one kind of run lives.

    Attributes:
        name: value of `kind:` in a run spec.
        package: folder of the kind, as a dotted name.
        spec_class: name of its pydantic model in `<package>.spec`.
        template: file name of its array script in `templates/`.
        script: stem of the rendered array script, `embed` for `embed.slurm`.
        is_remote: whether the model is behind an endpoint, which charges for each row; then the
            spec has `spending.execute`, without which nothing is planned.
    """

    name: str
    package: str
    spec_class: str
    template: str
    script: str
    is_remote: bool = False

    def spec_model(self) -> Any:
        """Returns the pydantic class of this kind's run spec."""
        return getattr(import_module(f"{self.package}.spec"), self.spec_class)

    def resolve_model(self) -> Any:
        """Returns `resolve_model(spec) -> dict` of this kind: what the plan says of the model.

        The dict has `name`, `label` (folder name in paths), `path` (local folder or None) and
        `fingerprint` (what makes it another model; hashed), and what else the kind wants to keep.
        """
        return import_module(f"{self.package}.resolve").resolve_model

    def stage_model(self) -> Any:
        """Returns `stage_model(spec, cache, report) -> list[Fetched]`: the model, brought here."""
        return import_module(f"{self.package}.stage").stage_model

    def query_encoder(self) -> Any:
        """Returns `embed_queries(plan, texts, prompt_name) -> (vectors, notes)` of this kind.

        The vectors are as those of the run, (n_texts, dim), float32; `prompt_name` chooses one of
        the model's prompts, None the run's own. A kind that `is_remote` also takes `base_url`, the
        address of its endpoint now. Imports heavy libraries.

        Raises:
            InputError: this kind embeds no texts of its own accord.
        """
        if find_spec(f"{self.package}.query") is None:
            raise InputError(
                f"No search by text: kind={self.name}; such a run embeds its rows only. Search by "
                "the id of a row, with --like."
            )
        return import_module(f"{self.package}.query").embed_queries

    def readiness(self) -> Any:
        """Returns `check_ready(model, spec)` of this kind, None where its plan is all it needs.

        It raises where tasks that are started from here would lack what no plan holds, such as a
        key; `model` is what the plan says of the model, `spec` the spec in it.
        """
        if find_spec(f"{self.package}.ready") is None:
            return None
        return import_module(f"{self.package}.ready").check_ready

    def outstanding(self) -> Any:
        """Returns what knows what runs of a kind leave with others, None where they leave nothing.

        A module with `left_batches(plan) -> list`, which looks at the disk alone, and
        `cancel_batches(plan) -> Iterator`, which asks; their items say in words what they are.
        """
        if find_spec(f"{self.package}.outstanding") is None:
            return None
        return import_module(f"{self.package}.outstanding")

    def dry_run(self) -> Any:
        """Returns `dry_run(plan) -> list[str]`: what a run takes and costs, for charged kinds."""
        return import_module(f"{self.package}.estimate").dry_run

    def slice_work(self) -> Any:
        """Returns `run_slice(work: SliceWork) -> SliceOutcome`; imports heavy libraries."""
        return import_module(f"{self.package}.work").run_slice


KINDS: dict[str, Kind] = {
    "embed": Kind(
        name="embed",
        package="chatspace.hf_embed",
        spec_class="EmbedSpec",
        template="embed.slurm.j2",
        script="embed",
    ),
    "embed_openai": Kind(
        name="embed_openai",
        package="chatspace.openai_embed",
        spec_class="EmbedOpenAISpec",
        template="embed.slurm.j2",
        script="openai",
        is_remote=True,
    ),
}
