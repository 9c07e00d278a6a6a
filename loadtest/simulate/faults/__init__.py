"""Replicas and nodes that die in simulated time, and what becomes of their requests.

failure  which dies when, for how long
outages  lets it happen, and finds replicas that go on with what was open
report   what the clients saw before, meanwhile and afterwards
"""
