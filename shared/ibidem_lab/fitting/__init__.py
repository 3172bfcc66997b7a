"""The threshold of a deployment, moved to where its own labels put it."""
