"""Guesses in simulated time: what a server guesses ahead of answers that repeat themselves, without their texts.

guesses    what a replica asks of whatever guesses
repeating  answers repeat themselves by chance, and a server guesses as far as that pays
recorded   the guesses of a recorded run, that were right
"""
