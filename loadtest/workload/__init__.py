"""What is sent when: traces, arrivals, prompts."""
