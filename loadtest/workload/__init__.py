"""What is sent, and when: traces, arrivals, prompts."""
