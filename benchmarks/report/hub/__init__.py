"""A trial as a folder that a model hub takes: weights, configuration, pictures, and a card with its evaluation.

Everything is written from what the trial has left on disk, without a network.
"""
