"""Measure the merge of a large model: `python benchmarks/merge_memory.py` (see README.md).

Makes a random checkpoint and adapter, merges and checks them in fresh processes, and copies the
same files. Prints a Markdown table and writes `results/<name>.json`. Units: seconds and bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench import ROOT, figure, machine, table

from ftsuite import jsonfile
from ftsuite.config import ModelConfig
from ftsuite.training import merge, mergecheck, streammerge, tensorfile

SHAPES = {
    # Llama 3 8B and Llama 3.2 1B (untied here), from their config.json.
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
LLAMA2_13B = {"parameters": 13_015_864_320, "hidden": 5120, "intermediate": 13_824}
DTYPE, RANK = "bfloat16", 16
SHARD_BYTES = 2_000_000_000
REPEATED = 8_000_003
"""Random values that are drawn, and repeated: a prime, so that no two rows are alike."""
SAMPLE_SECONDS = 0.02
WAYS = ("imports", "streamed", "check", "peft")
FIELDS = {"VmRSS": "rss", "RssAnon": "anonymous", "RssFile": "file_pages"}


def make(shape: str, base: Path, adapter: Path) -> int:
    """Write a random base in bfloat16 and an adapter on all its linear layers.

    Returns:
        Bytes of the base's weights.
    """
    import peft
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        config = LlamaConfig(**SHAPES[shape], dtype=DTYPE, tie_word_embeddings=False)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(base, state_dict={})
    torch.manual_seed(0)
    drawn = (torch.randn(REPEATED) * 0.02).to(torch.bfloat16)
    block = drawn.view(torch.uint8).numpy().tobytes()

    def repeated(size: int) -> Any:
        while size:
            yield block[: min(size, len(block))]
            size -= min(size, len(block))

    split = split_torch_state_dict_into_shards(
        state := model.state_dict(),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for shard, names in split.filename_to_tensors.items():
        entries = [
            tensorfile.Entry(
                name=name,
                dtype="BF16",
                shape=tuple(state[name].shape),
                blocks=lambda size=state[name].nbytes: repeated(size),
            )
            for name in names
        ]
        tensorfile.write(base / shard, entries, lambda _: None)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    settings = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    tuned = peft.get_peft_model(model, settings, low_cpu_mem_usage=True)
    settings.save_pretrained(adapter)
    parts = {
        name.replace(".default", ""): torch.randn(part.shape) * 0.01
        for name, part in tuned.named_parameters()
        if ".lora_" in name
    }
    save_file(parts, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    return sum(path.stat().st_size for path in base.glob("*.safetensors"))


def once(way: str, base: Path, adapter: Path, folder: Path) -> None:
    """Do one thing in this process and print the seconds and its peak as JSON."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    # All that fitting embeddings asks of a tokenizer.
    tokenizer, config = SimpleNamespace(pad_token_id=0), ModelConfig(id=str(base))
    settings: dict[str, Any] = {"tokenizer": tokenizer, "config": config, "dtype": DTYPE}
    started = time.perf_counter()
    if way == "streamed":
        streammerge.write(
            base, adapter, folder, **settings, shard_bytes=SHARD_BYTES, advance=lambda _: None
        )
    elif way == "peft":
        merge._merge_in_memory(base, adapter, folder, **settings, shard_bytes=SHARD_BYTES)
        sync(folder)
    elif way == "check":
        mergecheck.prove(base, adapter, folder, DTYPE)
    seconds = time.perf_counter() - started
    # The kernel's own mark, which no sampling misses.
    peak = memory("self", {"VmHWM": "peak"})["peak"]
    print(json.dumps({"seconds": seconds, "peak_rss": peak}))


def memory(pid: int | str, fields: dict[str, str]) -> dict[str, int]:
    """Read fields of /proc/PID/status, in bytes; empty when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    values = dict(line.split(":", 1) for line in lines)
    return {
        to: int(values[name].split()[0]) * 1024 for name, to in fields.items() if name in values
    }


def measure(way: str, base: Path, adapter: Path, folder: Path) -> dict[str, Any]:
    """Run `once` in a fresh process, from files that are not in the page cache, and watch it."""
    forget(base, adapter, folder)
    command = [sys.executable, __file__, "--once", way, *map(str, (base, adapter, folder))]
    environment = {**os.environ, "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    peaks = dict.fromkeys((f"peak_{name}" for name in FIELDS.values()), 0)
    while child.poll() is None:
        for name, value in memory(child.pid, FIELDS).items():
            peaks[f"peak_{name}"] = max(peaks[f"peak_{name}"], value)
        time.sleep(SAMPLE_SECONDS)
    output, errors = child.communicate()
    if child.returncode:
        raise SystemExit(f"merge_memory: {way} exited with {child.returncode}: {errors[-2000:]}")
    return {**peaks, **json.loads(output.splitlines()[-1])}


def copy(base: Path, folder: Path) -> float:
    """Seconds that cp takes for the base's files, until they are on the disk."""
    forget(base)
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(base), str(folder)], check=True)
    sync(folder)
    return time.perf_counter() - started


def sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def forget(*folders: Path) -> None:
    """Drop the files' pages from the page cache, so that every way reads from the disk."""
    for path in (path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rounds_of(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All rounds of one shape: copy, merge, check, and PEFT where asked for, in turns."""
    base, adapter, merged = (scratch / name for name in ("base", "adapter", "merged"))
    size = make(options.shape, base, adapter)
    taken: dict[str, list[Any]] = {way: [] for way in ("copy", *WAYS)}
    taken["imports"].append(measure("imports", base, adapter, merged))
    for number in range(options.rounds):
        taken["copy"].append({"seconds": copy(base, scratch / "copy")})
        shutil.rmtree(scratch / "copy")
        taken["streamed"].append(measure("streamed", base, adapter, merged))
        if not number:
            taken["check"].append(measure("check", base, adapter, merged))
        shutil.rmtree(merged)
        if options.peft:
            taken["peft"].append(measure("peft", base, adapter, merged))
            shutil.rmtree(merged)
    figures = [
        figure(f"{way}: {name.replace('_', ' ')}", unit, *(one[name] for one in found))
        for way, found in taken.items()
        for name in (found[0] if found else ())
        if (way, name) != ("imports", "seconds")
        for unit in ("seconds" if name == "seconds" else "bytes",)
    ]
    ratio = sum(one["seconds"] for one in taken["streamed"]) / sum(
        one["seconds"] for one in taken["copy"]
    )
    return {
        "shape": options.shape,
        "rank": RANK,
        "dtype": DTYPE,
        "weights_bytes": size,
        "seconds_of_a_copy": round(ratio, 2),
        "estimated_13b": estimate(options, size, taken["streamed"]),
        "figures": figures,
    }


def estimate(options: argparse.Namespace, size: int, streamed: list[Any]) -> dict[str, Any]:
    """What 13B would take, from the figures here: computed, not measured.

    Of the memory, one product B·A in float32 depends on the model; seconds grow with the bytes.
    """
    shape = SHAPES[options.shape]
    here = 4 * shape["hidden_size"] * shape["intermediate_size"]
    there = 4 * LLAMA2_13B["hidden"] * LLAMA2_13B["intermediate"]
    weights = 2 * LLAMA2_13B["parameters"]
    seconds = sum(one["seconds"] for one in streamed) / len(streamed)
    return {
        "weights_bytes": weights,
        "peak_rss": max(one["peak_rss"] for one in streamed) + there - here,
        "seconds": round(seconds * weights / size, 1),
    }


def main() -> None:
    """Make the files in a temporary folder, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peft", action="store_true", help="also with the model in memory")
    parser.add_argument("--scratch", type=Path, help="where the files are made; three times theirs")
    parser.add_argument("--name", default="merge_memory", help="name of the results file")
    parser.add_argument("--once", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        once(options.once[0], *map(Path, options.once[1:]))
        return
    before = machine()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        found = rounds_of(options, Path(scratch))
    results = {"benchmark": "merge_memory", "machine": before, **found}
    print(table(results["figures"]), "", sep="\n")
    print(*(f"- {k}: {v}" for k, v in results.items() if k not in ("figures", "machine")), sep="\n")
    path = ROOT / "benchmarks" / "results" / f"{options.name}.json"
    jsonfile.write_text(path, jsonfile.dumps(results))


if __name__ == "__main__":
    main()
