"""The real scheduler in simulated time: what a trace would see on given hardware, without the hardware.

specs    what a device and a model are, read from YAML
cost     seconds of one step
content  token ids of a trace's prompts: equal where the trace says that text is equal
replica  one scheduler and its pool, stepped as the engine's loop steps them
timeline what is to happen, in order of time
cluster  arrivals and replicas, and what goes from one to another
apart    replicas that take turns, each by itself, in processes
counted_blocks  blocks of KV where nobody finds what they hold
hand_over   prompts that one replica computes and another goes on with
role_watch  role switching
keepers  KV that outlives a replica
faults   replicas and nodes that die
links    what KV goes over, with the figures of data sheets
calibrate, fit   the cost model's constants from measured runs
"""
