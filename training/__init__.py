"""Makes students: data engines, training stages, evaluation."""
