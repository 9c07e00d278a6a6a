"""Prompts here, decodes there: whose prompt is computed by an engine of its own, and how the request gets to the next one."""
