"""`ftsuite preview`: what the first cell of a sweep will be trained on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.commands.display import one_line, write, write_with
from ftsuite.commands.selection import overrides

if TYPE_CHECKING:
    from argparse import Namespace


def preview(options: Namespace) -> int:
    """Print rendered rows with their trained tokens, and the counts of every split."""
    from ftsuite import progress
    from ftsuite.data import preview as previews
    from ftsuite.models import loading, sources
    from ftsuite.studies import sweeper

    sweep = sweeper.compose(overrides(options))
    config, entry = sweep.configs[0], sweep.manifest.cells[0]
    if len(sweep.configs) > 1:
        print(f"the first of {len(sweep.configs)} cells: {entry.label}")
    progress.quiet_libraries()
    base = sources.resolve(
        config.model,
        Path(config.store.root),
        on_event=lambda text: print(text, file=sys.stderr, flush=True),
    )
    tokenizer = loading.load_tokenizer(base.folder, config.model)
    write_with(lambda console: previews.preview(config, tokenizer, console, options.rows))
    write(*map(one_line, sweeper.said_of_evals(sweep)))
    return 0
