"""What a number of GPUs is best used for: how many engines, of how many GPUs each, with which roles.

layout       one way to share the GPUs out, and all that there are
trial        a layout simulated at one rate: which requests met their objectives, and which phase was behind
tournament   the highest rate that any layout sustains, by bisection over those that are still in the running
tightness    goodput for several scales of the objectives
report       the table, the winner's flags, and JSON
cli          the command
"""
