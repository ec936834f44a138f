"""`ftsuite doctor`: what this machine has, what is missing, and the remedy."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import __version__
from ftsuite.commands import machine, network
from ftsuite.commands.display import one_line, table, write, write_json
from ftsuite.commands.selection import store_root
from ftsuite.config import StoreConfig
from ftsuite.models import embedded
from ftsuite.reporting import formats as fmt

if TYPE_CHECKING:
    from argparse import Namespace

LITTLE_DISK, LITTLE_MEMORY = 3_000_000_000, 3_000_000_000
"""Bytes below which the demo may fail: its store takes about 2 GB, its training 2.5 GB."""


def doctor(options: Namespace) -> int:
    """Examine this machine; exit with 1 if something essential is missing."""
    root = store_root()
    facts = _facts(root, with_network=options.network)
    problems = _problems(facts)
    facts["problems"] = problems
    if options.json:
        write_json(facts)
    else:
        _write(facts)
    return 1 if any(problem["essential"] for problem in problems) else 0


def _facts(root: Path, *, with_network: bool) -> dict[str, Any]:
    try:
        packages = machine.packages()
    except metadata.PackageNotFoundError:
        packages = {"ftsuite": {"version": None, "wanted": __version__}}
    # Without its packages nothing else can be found out.
    usable = not any(facts["version"] is None for facts in packages.values())
    installer = machine.installer()
    return {
        "ftsuite": __version__,
        "python": machine.python(),
        "packages": packages,
        "installer": installer,
        "hardware": machine.hardware() if usable else None,
        "chosen": machine.chosen() if usable else None,
        "secrets": machine.secrets(),
        "disks": {
            "store": machine.disk(root),
            "reports": machine.disk(Path(StoreConfig().reports)),
        },
        "caches": machine.caches(root) if usable else None,
        "network": {
            "hub": network.hub(),
            "registry": network.registry(installer, embedded.SMOLLM2.requirement),
        }
        if with_network and usable
        else None,
        "problems": [],
    }


def _problems(facts: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def add(problem: str, remedy: str, *, essential: bool) -> None:
        found.append(_problem(problem, remedy, essential=essential))

    for words in machine.unfit(facts["packages"]):
        missing = "is missing" in words
        add(words, "install the project again: uv pip install -e .", essential=missing)
    for name, disk in facts["disks"].items():
        setting = f"store.{'root' if name == 'store' else 'reports'}"
        if not disk["writable"]:
            add(f"{disk['path']} cannot be written", f"set {setting} elsewhere", essential=True)
        elif disk["free_bytes"] < LITTLE_DISK:
            free = fmt.size(disk["free_bytes"])
            add(f"{free} free for {disk['path']}", f"free some, or set {setting}", essential=False)
    if facts["hardware"]:
        found += _device_problems(facts["hardware"], facts["chosen"])
    caches = facts["caches"]
    for words in caches["damaged"] if caches else ():
        what, _, remedy = words.rpartition("; ")
        add(what, remedy, essential=True)
    if caches and not any(caches["embedded"].values()) and not caches["hub"]["models"]:
        add("no base model on this machine", "ftsuite fetch", essential=False)
        if facts["installer"] is None:
            add("neither uv nor pip is there to fetch wheels", "install uv", essential=False)
    for name, answer in (facts["network"] or {}).items():
        if not answer["reachable"]:
            remedy = "check the network; what is cached or embedded works without it"
            add(f"{name} does not answer ({answer['reason']})", remedy, essential=False)
    return found


def _problem(problem: str, remedy: str, *, essential: bool) -> dict[str, Any]:
    return {"problem": problem, "remedy": remedy, "essential": essential}


def _device_problems(hardware: dict[str, Any], chosen: dict[str, str]) -> list[dict[str, Any]]:
    found = []
    if hardware["memory_free_bytes"] < LITTLE_MEMORY:
        free = fmt.size(hardware["memory_free_bytes"])
        remedy = "close programs, or take a smaller model"
        found.append(_problem(f"{free} of memory free", remedy, essential=False))
    if chosen["device"] == "cuda" and not hardware["gpus"]:
        remedy = "install a torch that fits the driver, or set backend.device=cpu"
        found.append(_problem("torch cannot use this machine's GPU", remedy, essential=True))
    elif hardware["nvidia_driver"] and not hardware["gpus"]:
        remedy = "install a CUDA build of torch to use it"
        found.append(
            _problem("an NVIDIA GPU is idle: torch is a CPU build", remedy, essential=False)
        )
    return found


def _write(facts: dict[str, Any]) -> None:
    rows = [("ftsuite", facts["ftsuite"]), ("python", facts["python"])]
    packages = [f"{name} {found['version']}" for name, found in facts["packages"].items()]
    rows.append(("packages", ", ".join(packages)))
    rows.append(("wheels from", facts["installer"] or "nothing (no uv, no pip)"))
    if facts["hardware"]:
        rows += _hardware_rows(facts["hardware"], facts["chosen"])
    present = [name for name, is_set in facts["secrets"].items() if is_set]
    rows.append(("secrets set", ", ".join(present) or "none (none is needed for local runs)"))
    for name, disk in facts["disks"].items():
        rows.append((f"disk of {name}", f"{fmt.size(disk['free_bytes'])} free for {disk['path']}"))
    if facts["caches"]:
        rows += _cache_rows(facts["caches"])
    for name, answer in (facts["network"] or {}).items():
        rows.append((name, "answers" if answer["reachable"] else answer["reason"]))
    if facts["network"] is None:
        rows.append(("network", "not asked; --network does"))
    problems = [
        one_line(
            f"{'PROBLEM' if found['essential'] else 'note'}: {found['problem']}; {found['remedy']}"
        )
        for found in facts["problems"]
    ]
    write(table("this machine", ("", ""), rows), *(problems or ["no problems"]))


def _hardware_rows(hardware: dict[str, Any], chosen: dict[str, str]) -> list[tuple[str, str]]:
    total, free = fmt.size(hardware["memory_bytes"]), fmt.size(hardware["memory_free_bytes"])
    gpus = [f"{gpu['name']} ({fmt.size(gpu['memory_bytes'])})" for gpu in hardware["gpus"]]
    return [
        ("processor", hardware["cpu"]),
        ("memory", f"{total}, {free} free"),
        ("GPUs", ", ".join(gpus) or ("Apple MPS" if hardware["mps"] else "none")),
        ("runs take", f"{chosen['device']}, {chosen['dtype']}"),
    ]


def _cache_rows(caches: dict[str, Any]) -> list[tuple[str, str]]:
    sizes = [f"{stage} {fmt.size(size)}" for stage, size in caches["store_bytes"].items() if size]
    embedded_words = [
        f"{name} {'converted' if there else 'not fetched'}"
        for name, there in caches["embedded"].items()
    ]
    hub = caches["hub"]
    return [
        ("store", ", ".join(sizes) or "empty"),
        ("Hub cache", f"{hub['path']}: {', '.join(hub['models']) or 'no models'}"),
        ("embedded model", ", ".join(embedded_words)),
        ("standard suite", "in the store" if caches["standard_suite"] else "not fetched"),
    ]
