"""What records say: comparisons, intervals, rankings; nothing here loads a model."""
