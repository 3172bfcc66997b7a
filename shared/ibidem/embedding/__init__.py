"""What turns a question into a vector: the `Embedder` protocol, and `resolve_embedder` to get one."""

from __future__ import annotations

from ibidem.embedding.base import Embedder, resolve_embedder

__all__ = ["Embedder", "resolve_embedder"]
