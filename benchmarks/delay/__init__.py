"""Measures what a feedback delay costs: time that workers wait or waste, and quality of the search.

Where to look: `workers` simulates workers that run a study; `waiting` measures their time; `spaces` makes
objectives; `search_cost` measures what the sampler loses.
"""
