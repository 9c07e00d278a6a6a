"""The JSON of APIs that are translated onto the chat API: OpenAI's Responses and Anthropic's Messages."""
