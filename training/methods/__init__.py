"""Methods that make a student of few steps from a teacher of many, one module each."""
