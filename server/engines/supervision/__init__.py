"""From an engine's start to its end, and its next start: what runs the processes, and what they do to the client."""
