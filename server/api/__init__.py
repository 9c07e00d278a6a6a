"""One file for each endpoint: how its body is made valid and how it is answered. `endpoints.py` lists them.

What several of them need to read a request is in `requests/`, to write an answer in `answers/`.
"""
