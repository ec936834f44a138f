"""A study: composed, validated, run and finished."""
