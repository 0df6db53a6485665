"""The student in PyTorch: what training, export and the reference engine import. Nothing else may."""
