"""What is told of the server: one lifetime per request, metrics, the operator's console, `headrace doctor`."""
