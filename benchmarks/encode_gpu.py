"""Encoders on a GPU: sentence-transformers and chatspace, padded, packed and compiled.

    python benchmarks/encode_gpu.py                        # perhaps half an hour: never run yet
    python benchmarks/encode_gpu.py --models bert-base     # one model
    python benchmarks/encode_gpu.py --end-to-end           # Parquet to Parquet instead
    python benchmarks/encode_gpu.py --device cpu --tiny    # everything once, with tiny models

The models have real sizes and random weights. `texts in` is the public door, tokenising included;
`tokens in` is the model over batches that were made before. Tokens are real ones: padding counts
for nothing, neither there nor in the share of the matmul peak, which is measured in the same run.
All engines of a model take turns, compiled ones among them; for MiniLM and short rows, where the
start of a kernel counts most, also one that records CUDA graphs. An engine or a model that cannot
run has a row that says why.

On a GPU each figure is of passes that are repeated for three seconds, because what says how busy it
is, `nvidia-smi`, looks back for one. What would end after `--minutes` is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import models
import torch
from corpora import LIMIT, exact
from gpu_load import NOT_TOLD, GpuLoad, gpu_id
from gpu_rounds import LEAST_S, ROUNDS, TOKENS, Cell, Setting, measure_all, wait
from minilm import token_count
from pipeline import Job, measure, print_report, scratch, write_rows
from report import hardware, print_table, versions

from chatspace.hf_embed.loading import quiet_libraries

PACKAGES = ("chatspace", "torch", "transformers", "sentence-transformers", "flash-attn", "numpy")
MATMUL = {"cuda": 8192, "cpu": 768}
TINY_ROWS, PASSES = 200, 20  # of Parquet to Parquet


def matmul_peak(device: str) -> float:
    """Returns operations per second of a large bfloat16 matrix product of random numbers."""
    n = MATMUL[torch.device(device).type]
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = []
    for _ in range(8):
        wait(device)
        start = time.perf_counter()
        for _ in range(5):
            torch.matmul(a, b)
        wait(device)
        found.append(5 * 2 * n**3 / (time.perf_counter() - start))
    return statistics.median(found[3:])


def table_row(cell: Cell, setting: Setting) -> list[object]:
    """Returns a row of the table."""
    label = [cell.model, cell.corpus, cell.engine]
    if cell.failure:
        return [*label, *[None] * 6, cell.failure]
    seconds = statistics.median(cell.tokens_s)
    return [
        *label,
        round(cell.n_tokens / statistics.median(cell.texts_s)),
        round(cell.n_tokens / seconds),
        f"{100 * cell.flops / seconds / setting.peak:.1f} %",
        _busy(cell, setting),
        f"{cell.cosine:.5f}",
        cell.ready_s,
        cell.note,
    ]


def _busy(cell: Cell, setting: Setting) -> str | None:
    """Returns how busy the GPU was, as a table says it; None on a CPU."""
    if cell.busy:
        return f"{100 * statistics.fmean(cell.busy):.0f} %"
    return None if setting.device == "cpu" else NOT_TOLD


def print_cells(cells: Sequence[Cell], setting: Setting) -> None:
    """Prints machine, versions, peak and the table."""
    print("# Encoders on a GPU: real tokens per second\n")
    print("\n".join(hardware()))
    print(f"- Versions: {versions(*PACKAGES)}")
    print(f"- Device: {setting.device}, bfloat16; matmul peak {setting.peak / 1e12:.3g} TFLOP/s")
    print(f"- Medians of up to {ROUNDS} rounds in turn; cosine to float32, one row at a time\n")
    columns = ["model", "lengths", "engine", "tokens/s, texts in", "tokens/s, tokens in"]
    columns += ["of matmul peak", "GPU busy, texts in", "min cosine", "ready s", "note"]
    print_table(columns, [table_row(cell, setting) for cell in cells])


def end_to_end(name: str, setting: Setting) -> None:
    """Prints the table of Parquet to Parquet with one model on the device."""
    sizes = models.tiny(models.MODELS[name]) if setting.tiny else models.MODELS[name]
    path = models.build(sizes, setting.folder / name, device=setting.device)
    n_rows = TINY_ROWS if setting.tiny else PASSES * TOKENS[name] // models.MEAN_TAIL
    texts = exact(models.heavy_tail(n_rows), count=token_count(path), seed=name)
    model = {"name": str(path), "dtype": "bfloat16", "device": setting.device}
    job = Job(
        data=write_rows(setting.folder / "rows.parquet", [texts]),
        folder=setting.folder,
        sections={"model": model},
        rows_per_shard=32 if setting.tiny else 8192,
    )
    found = measure(job, 1 if setting.tiny else ROUNDS)
    what = f"{len(texts):,} rows, lognormal lengths of median 80, cut at {LIMIT}"
    print_report(f"Parquet to Parquet on {setting.device}", job, found, model=name, data=what)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few rows")
    parser.add_argument("--models", nargs="+", choices=models.MODELS, help="[all; bert-base]")
    parser.add_argument("--compile", action="store_true", help="compile on a CPU too")
    parser.add_argument("--minutes", type=float, default=40.0, help="begin nothing that ends later")
    parser.add_argument("--end-to-end", action="store_true", help="Parquet to Parquet instead")
    parser.add_argument("--folder", type=Path, help="where to work [the system's temporary folder]")
    return parser.parse_args()


def main() -> None:
    """Prints the table."""
    until = time.perf_counter() + 60 * (arguments := _arguments()).minutes
    on_cpu = arguments.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        raise SystemExit("No GPU: PyTorch sees none. Try --device cpu --tiny.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    quiet_libraries()
    with scratch(arguments.folder) as folder:
        setting = Setting(
            device=arguments.device,
            tiny=arguments.tiny,
            folder=folder,
            until=until,
            peak=matmul_peak(arguments.device),
            load=None if on_cpu else GpuLoad.start(gpu_id(arguments.device)),
            compiles=arguments.compile or not on_cpu,
            least_s=0.0 if on_cpu or arguments.tiny else LEAST_S,
        )
        try:
            if arguments.end_to_end:
                end_to_end((arguments.models or ["bert-base"])[0], setting)
            else:
                cells = measure_all(arguments.models or list(models.MODELS), setting)
                print_cells(cells, setting)
        finally:
            if setting.load is not None:
                setting.load.stop()


if __name__ == "__main__":
    main()
