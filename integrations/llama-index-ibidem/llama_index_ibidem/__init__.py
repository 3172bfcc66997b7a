"""LlamaIndex on Ibidem: not released yet; use the core (`ibidem.open`) until it is."""
