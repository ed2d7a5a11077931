"""Tasks: ways of learning."""
