"""A score fitted to the labels of a deployment."""
