"""The subcommands of `ftsuite`, one a module; see docs/commands.md."""
