"""The buyer's question: the cheapest set of devices that keeps the objectives under a trace's load.

fleet       a set: engines of one kind, their roles and settings, and what they cost
tunings     step budgets and running limits that fit a device
load        the trace as it is, faster, with longer prompts; its busiest stretch
watch       what is sampled while a simulation runs, and when it can no longer reach the goal
trial       a fleet simulated under a load
pool        trials, several at a time
search      the smallest fleet of a kind, by bisection
answer      the cheapest one, its headroom, the next cheaper one, and what other loads would ask for
words       the answer as sentences and tables
page        the same as a page with plots
cli         the command
"""
