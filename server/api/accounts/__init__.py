"""What the holders of API keys may ask about themselves."""
