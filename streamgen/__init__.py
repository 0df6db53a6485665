"""What a stream is: the model, its cache and rollout, the stream's state, and student files."""

__version__ = "0.1.0"
