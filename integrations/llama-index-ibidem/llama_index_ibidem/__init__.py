"""LlamaIndex on Ibidem: a caching model, a caching synthesizer and a handler that logs."""

from llama_index_ibidem.llm import CachedLLM

__all__ = ["CachedLLM"]
