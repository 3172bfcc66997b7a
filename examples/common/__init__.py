"""Parts that the demos share: the corpus, the questions, the offline reader, the report."""
