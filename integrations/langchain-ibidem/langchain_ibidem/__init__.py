"""LangChain's LLM cache on Ibidem: `set_llm_cache(IbidemCache())` is all a program needs."""

from langchain_ibidem.cache import IbidemCache

__all__ = ["IbidemCache"]
