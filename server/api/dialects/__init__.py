"""Endpoints of other APIs, OpenAI's Responses and Anthropic's Messages: translations onto the chat job, and of what comes of it."""
