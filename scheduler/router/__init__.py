"""Which replica gets a request: what is known of each, what that makes one expect, and the policies that choose by it.

The same objects run in a server's HTTP process, fed by the engines' messages, and in the simulator, fed by simulated ones. No
torch, no I/O; time is passed in.

    view           what a policy sees of a replica, for one request
    policy         the contract of a policy, and what all have in common
    step_cost      seconds of a step, learnt from the steps that ran
    sequences      what is open in a replica: prompts still to be computed, sequences that decode
    block_index    which KV blocks a replica holds, by name
    split          whose prompts one replica computes and another goes on with
    state          all that is known of one replica; makes views
    role_switching which replica changes its role, and when
"""
