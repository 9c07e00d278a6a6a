"""One file for each endpoint: how its body is made valid and how it is answered. `endpoints.py` lists them."""
