"""Plain data: messages, steps, requests, transfers, names of blocks. Who else imports of the scheduler imports this."""
