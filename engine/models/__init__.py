"""One description per model family, and what all families share."""
