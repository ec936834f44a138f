"""Files and rows to tokenised, packed splits."""
