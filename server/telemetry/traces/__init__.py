"""Traces by OpenTelemetry: whether they are on, the spans of a request as plain data, and sending them."""
