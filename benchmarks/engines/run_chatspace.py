"""This project's encoder."""

from __future__ import annotations

from protocol import Embed, Job, serve

from chatspace.hf_embed.work import prepare_process


def load(job: Job) -> Embed:
    prepare_process(job.threads)
    from chatspace.hf_embed.loading import load_encoder
    from chatspace.hf_embed.spec import EncodeSection, ModelSection

    section = ModelSection(name=job.model, dtype=job.dtype, device="cpu")
    encoder = load_encoder(section, EncodeSection(**job.options), path=job.model)
    return encoder.embed


if __name__ == "__main__":
    serve(load, "chatspace", "torch", "transformers", "sentence-transformers")
