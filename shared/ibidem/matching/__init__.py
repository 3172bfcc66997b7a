"""Whether a stored answer fits a question. Pure."""
