"""`ibidem report`: the activity of a cache as one HTML page."""
