"""From a job to its answer, streamed or whole, and the shapes of JSON that several endpoints write."""
