"""What a cache tells OpenTelemetry and the log; nothing of what was asked. Names: docs/telemetry.md."""
