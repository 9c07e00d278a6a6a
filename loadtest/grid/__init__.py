"""`headrace loadtest grid`: one server after the other, each with other flags, under the same load."""
