"""What a training on many ranks would take, before anybody rents them.

costs.py of `distributed/` has the messages. Here:

cost_model.py   memory of a rank, seconds of an update, where more ranks do not pay
speed.py        how fast a rank of this machine computes
words.py        what is printed
verb.py         npllm plan
"""
