"""Text: tokens from text, text from tokens, and prompts from conversations. No HTTP, no engine."""
