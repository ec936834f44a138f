"""The parts of the report: numbers, sentences, tables and plots; no part computes a result."""
