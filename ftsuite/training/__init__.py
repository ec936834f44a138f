"""Adapters: trained, merged, and proved to be what was trained."""
