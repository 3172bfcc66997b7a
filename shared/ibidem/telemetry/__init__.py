"""OpenTelemetry: spans and log records of lookups and stores, and metrics."""
