"""LangChain's global LLM cache on Ibidem."""
