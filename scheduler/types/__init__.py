"""Plain data: messages, steps, requests, transfers, keys of blocks. Other packages import only this from the scheduler."""
