"""Typed configuration: one declaration per knob, model descriptions read from headers, YAML presets."""
