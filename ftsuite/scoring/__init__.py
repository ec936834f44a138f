"""Scores: lm-eval tasks, held-out rows and prompt probes."""
