"""A better embedding from the cache's own log: train, evaluate, write a model directory.

The only package that uses torch (`pip install 'ibidem-cache[tune]'`). It is imported where a model is
trained, so that reading pairs and comparing models need none.
"""
