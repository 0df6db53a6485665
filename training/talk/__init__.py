"""Talking heads: where their clips come from."""
