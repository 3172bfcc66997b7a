"""A second opinion of a small model, where the scores leave doubt whether a stored answer serves."""
