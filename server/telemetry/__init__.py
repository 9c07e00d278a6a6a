"""What the server reports about itself: one lifetime per sequence, metrics, the operator's console, `headrace doctor`."""
