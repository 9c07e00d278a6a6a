"""Keepers in simulated time: KV that outlives a replica, on its node or on all.

keepers  what each node keeps: one book that its replicas share
peers    what a replica finds in the keepers of other nodes
carrier  how long its bytes take
"""
