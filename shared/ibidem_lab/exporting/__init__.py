"""The example log as training data."""
