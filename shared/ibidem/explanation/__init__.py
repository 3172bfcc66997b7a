"""Why a request would be answered from the cache, or would not."""
