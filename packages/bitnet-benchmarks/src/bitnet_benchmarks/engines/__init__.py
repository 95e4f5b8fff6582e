"""Engines in processes of their own, so that memory and time to load are theirs alone; each answers to the same words.

An engine of somebody else may need another interpreter: these modules import nothing but what that one has.
"""
