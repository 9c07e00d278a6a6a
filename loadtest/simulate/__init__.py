"""The real scheduler in simulated time: what a trace would see on given hardware, without the hardware.

specs    what a device and a model are, read from YAML
cost     seconds of one step
content  token ids of a trace's prompts: equal where the trace says that text is equal
replica  one scheduler and its pool, stepped as the engine's loop steps them
cluster  the event loop over arrivals and replicas
evictions  hit rates of the eviction policies, without time
calibrate, fit   the cost model's constants from measured runs
"""
