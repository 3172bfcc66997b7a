"""May a stored answer be repeated for this question? Pure: no clock, no I/O, no model."""
