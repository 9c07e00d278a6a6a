"""`/v1/files` and `/v1/batches`, and how a line of a batch is answered."""
