"""`ibidem report`: what a cache did, as one HTML page."""
