"""How fast Ibidem is beside other caches: same questions, same embedding weights, one run."""
