"""Base models and their templates: which weights, how they are loaded, what a prompt is."""
