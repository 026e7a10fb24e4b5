"""Mending a classifier: other classes, a second opinion on hard pairs, and new classes from a few examples.

Arrays in, records out: nothing here knows a network or a runtime.
"""
