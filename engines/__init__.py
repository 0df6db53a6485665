"""Runtimes for a student's step and decoder behind one protocol."""
